"""A data sheet as one self-contained HTML page. Whatever a site or a user named is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import FunctionLoader
from markupsafe import Markup

from fedmed_common.templates import environment
from fedmed_server.report.charts import Chart, histogram_chart, rounded
from fedmed_server.survey.sheet import AXES, QUANTILES, Histogram, Sheet

_PAGE = "datasheet.html"
_SIZE = (270.0, 150.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One histogram: its picture and its quantiles."""

    title: str
    unit: str
    chart: Chart | None
    quantiles: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Panels that belong together."""

    title: str
    told: str
    panels: tuple[Panel, ...]


def survey_page(sheet: Sheet) -> str:
    """The page."""
    pages = environment(FunctionLoader(_source))
    assets = {"charts_css": Markup((_REPORT / "charts.css").read_text(encoding="utf-8"))}  # noqa: S704
    percent = [f"{share:.0%}" for share in QUANTILES]
    return pages.get_template(_PAGE).render(sheet=sheet, groups=_groups(sheet), percent=percent, **assets)


_REPORT, _OWN = files("fedmed_server.report"), files("fedmed_server.survey")


def _source(name: str) -> str:
    folder = _OWN if name == _PAGE else _REPORT
    return (folder / name).read_text(encoding="utf-8")


def _groups(sheet: Sheet) -> list[Group]:
    channels = [f"channel {number}" for number in range(1, len(sheet.image) + 1)]
    unit = "HU or as stored" if sheet.experiment["data"]["intensity"]["kind"] == "window" else "0 to 255"
    volumes = [_panel(name, "ml", _in_ml(volume.shown)) for name, volume in sheet.volumes.items()]
    return [
        Group(
            title="Voxel size",
            told="patients by the length of a voxel along each axis",
            panels=_panels(AXES, "mm", sheet.spacing_mm),
        ),
        Group(
            title="Extent",
            told="patients by the number of voxels along each axis",
            panels=_panels(AXES, "voxels", sheet.extent),
        ),
        Group(
            title="Intensity within classes",
            told="the share of each patient's labelled voxels, summed over patients",
            panels=_panels(channels, unit, sheet.foreground),
        ),
        Group(
            title="Intensity of whole images",
            told="the share of each patient's voxels, summed over patients",
            panels=_panels(channels, unit, sheet.image),
        ),
        Group(
            title="Volume of each class",
            told="patients who show it, by its volume in a case",
            panels=tuple(volumes),
        ),
    ]


def _panels(titles: Sequence[str], unit: str, histograms: Sequence[Histogram]) -> tuple[Panel, ...]:
    return tuple(_panel(title, unit, histogram) for title, histogram in zip(titles, histograms, strict=True))


def _in_ml(mm3: Histogram) -> Histogram:
    return Histogram(centres=tuple(centre / 1000 for centre in mm3.centres), counts=mm3.counts)


def _panel(title: str, unit: str, histogram: Histogram) -> Panel:
    values = [histogram.quantile(share) for share in QUANTILES]
    return Panel(
        title=title,
        unit=unit,
        chart=histogram_chart(histogram.centres, histogram.counts, title=f"{title}, {unit}", size=_SIZE),
        quantiles=tuple("-" if value is None else rounded(value) for value in values),
    )
