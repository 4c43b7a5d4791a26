"""What was found as one page that opens without a network, pictures and all."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fedmed_client.data.text import printable
from fedmed_client.preflight.measures import CaseFacts
from fedmed_client.preflight.run import Preflight

_WIDTH, _HEIGHT, _BASE, _BINS = 220.0, 84.0, 66.0, 16
_LEAST_WIDTH, _MOST_PICTURES = 1e-6, 400
_INK, _BAR = "#5b6673", "#0b6e69"


def html(found: Preflight, root: Path) -> str:
    """The page. Paths are shown from ``root``."""
    from jinja2 import PackageLoader
    from markupsafe import Markup

    from fedmed_common.templates import environment

    odd = {finding.case for finding in found.findings}
    wanted = [case for number, case in enumerate(found.cases) if number < _MOST_PICTURES or case.path in odd]
    pictures = {case.path: base64.b64encode(case.thumbnail).decode("ascii") for case in wanted}
    pages = environment(PackageLoader("fedmed_client.preflight", "."))
    return pages.get_template("preflight.html").render(
        found=found,
        more=max(0, len(found.cases) - _MOST_PICTURES),
        cases=found.cases[:_MOST_PICTURES],
        level=found.level,
        pictures=pictures,
        plots=[(title, Markup(drawing)) for title, drawing in plots(found.cases)],  # noqa: S704
        shown=lambda path: shown(path, root),
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=version("fedmed"),
    )


def shown(path: Path, root: Path) -> str:
    """A case's name on a screen of this site."""
    return printable(str(path.relative_to(root) if path.is_relative_to(root) else path))


def plots(cases: Sequence[CaseFacts]) -> list[tuple[str, str]]:
    """Distributions over the cases, as SVG, with what they are of."""
    if not cases:
        return []
    axes = ("to the right", "to the front", "to the top")
    found = [(f"voxel, mm, {axis}", [case.spacing_mm[k] for case in cases]) for k, axis in enumerate(axes)]
    found += [(f"body, mm, {axis}", [case.body_mm[k] for case in cases]) for k, axis in enumerate(axes)]
    found += [
        (f"intensity, {name}", [case.levels[k] for case in cases])
        for k, name in enumerate(("1 % are below", "half are below", "99 % are below"))
    ]
    names = sorted({one.name for case in cases for one in case.classes})
    found += [
        (f"{name}, ml", [one.ml for case in cases for one in case.classes if one.name == name])
        for name in names
    ]
    return [(title, histogram(values)) for title, values in found]


def histogram(values: Sequence[float]) -> str:
    """A distribution as SVG; its ends are named."""
    low, high = min(values), max(values)
    is_wide = high - low > _LEAST_WIDTH * max(abs(low), abs(high), 1.0)
    counts, _ = np.histogram(values, bins=_BINS, range=(low, high if is_wide else low + 1.0))
    step, most = _WIDTH / _BINS, max(1, int(counts.max()))
    bars = "".join(
        f'<rect x="{k * step + 1:.1f}" y="{_BASE * (1 - count / most):.1f}" width="{step - 2:.1f}" '
        f'height="{_BASE * count / most:.1f}" fill="{_BAR}"/>'
        for k, count in enumerate(counts)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" width="{_WIDTH:g}" role="img">{bars}'
        f'<path d="M0 {_BASE:g}H{_WIDTH:g}" stroke="{_INK}"/><g font-family="sans-serif" font-size="11" fill="{_INK}">'
        f'<text x="0" y="{_HEIGHT - 4:g}">{low:.4g}</text>'
        f'<text x="{_WIDTH:g}" y="{_HEIGHT - 4:g}" text-anchor="end">{high:.4g}</text></g></svg>'
    )
