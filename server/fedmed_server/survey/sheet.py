"""The data sheet of a consortium: what a survey's sums say of all sites together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.fields import Model
from fedmed_common.files import write_atomically
from fedmed_strategies.statistics.bins import Bins
from fedmed_strategies.statistics.survey import EXTENTS, LEVELS, SPACINGS, VOLUMES

FILE = "datasheet.json"
AXES = ("right", "anterior", "superior")
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Histogram(Model):
    """``counts`` of patients, or sums of their shares, around ``centres``; with noise they can be negative."""

    centres: tuple[Finite, ...]
    counts: tuple[Finite, ...]

    @property
    def total(self) -> float:
        """Of all bins."""
        return float(sum(self.counts))

    def quantile(self, share: float) -> float | None:
        """The first centre up to which at least ``share`` of all lies; None where there is nothing. Noise cannot lower a sum."""
        reached = np.maximum.accumulate(np.cumsum(self.counts))
        if not len(reached) or reached[-1] <= 0:
            return None
        return self.centres[int(np.searchsorted(reached, share * reached[-1] * (1 - 1e-6)))]


class ClassVolumes(Model):
    """``annotated``: patients in whom the class was looked for; ``shown``: those who show it, by its volume in mm^3."""

    annotated: Finite
    shown: Histogram


class Sheet(Model):
    """What is known of a consortium's images; all of it are sums over sites, none of them of few patients or with noise.

    ``deviation``: of the noise on each number of a histogram, at most; 0: none. ``missed``: what is not in it, as sentences."""

    kind: Literal["fedmed data sheet"] = "fedmed data sheet"
    run: str
    experiment: dict[str, Any] = Field(description="that asked for it, as JSON")
    sites: int
    patients: Finite
    spacing_mm: tuple[Histogram, ...] = Field(description="along right, anterior, superior")
    extent: tuple[Histogram, ...] = Field(description="voxels along right, anterior, superior")
    image: tuple[Histogram, ...] = Field(description="of each channel, over all voxels")
    foreground: tuple[Histogram, ...] = Field(description="of each channel, over the voxels of any class")
    volumes: dict[str, ClassVolumes]
    landmarks: tuple[tuple[Finite, ...], ...] = Field(
        description="of each channel, where the deciles lie between the ends, as a mean over patients; none: not told"
    )
    deviation: dict[str, Finite]
    epsilon: Finite | None = Field(description="what it cost each patient, where there is noise")
    missed: tuple[str, ...] = ()


def sheet_of(
    experiment: Experiment,
    run: str,
    memory: Mapping[str, NDArray[Any]],
    noise: tuple[Mapping[str, float], float | None],
    told: tuple[int, Sequence[str]],
) -> Sheet:
    """``memory``: the gathered sums by ``statistic/array``. ``noise``: its deviation by statistic, and epsilon. ``told``: how
    many sites answered, and who missed it."""
    intensity = experiment.data.intensity
    low, high = (0.0, 255.0) if intensity.kind == "scale" else (intensity.low, intensity.high)
    levels = low + LEVELS.centres * (high - low)
    shown, annotated = memory["volumes/shown"], memory["volumes/annotated"]
    return Sheet(
        run=run,
        experiment=experiment.model_dump(mode="json", exclude={"simulation": True, "tracking": True}),
        sites=told[0],
        patients=float(memory["shapes/patients"][0]),
        spacing_mm=_rows(memory["shapes/spacing"], SPACINGS.centres),
        extent=_rows(memory["shapes/extent"], EXTENTS.centres),
        image=_rows(memory["intensities/image"], levels),
        foreground=_rows(memory["intensities/foreground"], levels),
        volumes={
            name: ClassVolumes(annotated=float(annotated[place]), shown=_of(shown[place], VOLUMES))
            for place, name in enumerate(experiment.task.classes)
        },
        landmarks=_mean(memory["landmarks/places"], float(memory["landmarks/patients"][0])),
        deviation=dict(noise[0]),
        epsilon=noise[1],
        missed=tuple(told[1]),
    )


def write_sheet(folder: Path, sheet: Sheet) -> None:
    """Into the run's folder."""
    write_atomically(folder / FILE, sheet.model_dump_json(indent=1).encode())


def read_sheet(path: Path) -> Sheet:
    """A data sheet, or that of the run whose folder ``path`` is.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    file = path / FILE if path.is_dir() else path
    try:
        return Sheet.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            "no data sheet is there", file=file, fix="name the folder of a survey, a run with rounds = 0"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{where}: {first['msg']}", file=file, fix="make the survey again") from None


def _mean(places: NDArray[Any], patients: float) -> tuple[tuple[float, ...], ...]:
    if patients < 1:
        return ()
    return tuple(tuple(float(f"{place:.4g}") for place in row) for row in places / patients)


def _rows(counts: NDArray[Any], centres: NDArray[Any]) -> tuple[Histogram, ...]:
    return tuple(Histogram(centres=tuple(centres.tolist()), counts=tuple(row.tolist())) for row in counts)


def _of(counts: NDArray[Any], bins: Bins) -> Histogram:
    (histogram,) = _rows(counts[None], bins.centres)
    return histogram
