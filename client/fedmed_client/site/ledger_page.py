"""The privacy ledger as a picture, and as a page for an ethics board."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from importlib.metadata import version

from fedmed_client.site.spending import Spending

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720.0, 280.0, 48.0, 12.0, 28.0, 36.0
_INK, _MUTED, _RULE, _ACCENT, _CEILING = "#1a2330", "#5b6673", "#e2e6ea", "#0b6e69", "#a8201a"


def picture(spent: Spending) -> str:
    """How epsilon grew, and the site's ceiling, as SVG. A ledger without rows is an empty picture."""
    times = [datetime.fromisoformat(time) for time, _ in spent.growth]
    values = [value for _, value in spent.growth]
    top = 1.12 * max([spent.maximum_epsilon or 0.0, *values, 1e-3])
    first, span = (times[0], max(1.0, (times[-1] - times[0]).total_seconds())) if times else (None, 1.0)

    def across(time: datetime) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * ((time - first).total_seconds() / span if first else 0.0)

    def up(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value / top

    box = f'viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" font-family="sans-serif" font-size="12"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {box}>']
    for value in _ticks(top):
        y = up(value)
        lines.append(f'<path d="M{_LEFT:g} {y:.1f}H{_WIDTH - _RIGHT:g}" stroke="{_RULE}"/>')
        lines.append(
            f'<text x="{_LEFT - 8:g}" y="{y + 4:.1f}" text-anchor="end" fill="{_MUTED}">{value:g}</text>'
        )
    if times:
        path = f"M{across(times[0]):.1f} {up(values[0]):.1f}"
        path += "".join(f"H{across(t):.1f}V{up(v):.1f}" for t, v in zip(times[1:], values[1:], strict=True))
        base = f"V{up(0):.1f}H{across(times[0]):.1f}Z"
        lines.append(f'<path d="{path}{base}" fill="{_ACCENT}" opacity="0.12"/>')
        lines.append(f'<path d="{path}" fill="none" stroke="{_ACCENT}" stroke-width="2"/>')
        lines.append(
            f'<circle cx="{across(times[-1]):.1f}" cy="{up(values[-1]):.1f}" r="4" fill="{_ACCENT}"/>'
        )
        for time, anchor in ((times[0], "start"), (times[-1], "end"))[: 1 + (len(times) > 1)]:
            lines.append(
                f'<text x="{across(time):.1f}" y="{_HEIGHT - 12:g}" text-anchor="{anchor}" fill="{_MUTED}">{time:%Y-%m-%d}</text>'
            )
    if spent.maximum_epsilon is not None:
        y = up(spent.maximum_epsilon)
        lines.append(
            f'<path d="M{_LEFT:g} {y:.1f}H{_WIDTH - _RIGHT:g}" stroke="{_CEILING}" stroke-dasharray="6 4"/>'
        )
        lines.append(
            f'<text x="{_WIDTH - _RIGHT:g}" y="{y - 6:.1f}" text-anchor="end" fill="{_CEILING}">maximum_epsilon</text>'
        )
    lines.append(
        f'<text x="{_LEFT:g}" y="14" fill="{_INK}">epsilon of all runs, at delta {spent.delta:g}</text></svg>'
    )
    return "\n".join(lines)


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 to the top."""
    size = 10.0 ** math.floor(math.log10(top))
    step = next(size * part for part in (0.2, 0.5, 1.0, 2.0) if top / (size * part) <= 6)
    return [number * step for number in range(int(top / step) + 1)]


def page(spent: Spending, consortium: str) -> str:
    """One self-contained HTML page, which prints on paper."""
    from jinja2 import PackageLoader
    from markupsafe import Markup

    from fedmed_common.templates import environment

    pages = environment(PackageLoader("fedmed_client.site", "."))
    return pages.get_template("ledger.html").render(
        spent=spent,
        consortium=consortium,
        drawing=Markup(picture(spent)),  # noqa: S704
        version=version("fedmed"),
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
