"""The privacy ledger as a picture, and as a page for an ethics board."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from fedmed_client.site.spending import Spending

_INK, _MUTED, _RULE, _ACCENT, _CEILING = "#1a2330", "#5b6673", "#e2e6ea", "#0b6e69", "#a8201a"


def picture(spent: Spending, kind: str = "svg") -> bytes:
    """How epsilon grew, and the site's ceiling; ``kind``: svg, png or pdf. A ledger without rows is an empty picture."""
    import matplotlib as mpl
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
    from matplotlib.figure import Figure

    times = [float(date2num(datetime.fromisoformat(time))) for time, _ in spent.growth]
    values = [value for _, value in spent.growth]
    canvas = Figure(figsize=(7.2, 3.0), dpi=110, layout="constrained")
    axes = canvas.add_subplot()
    if times:
        axes.step(times, values, where="post", color=_ACCENT, linewidth=1.8, label="spent")
        axes.plot(times[-1:], values[-1:], "o", color=_ACCENT, markersize=5)
        axes.fill_between(times, values, step="post", color=_ACCENT, alpha=0.12)
    if spent.maximum_epsilon is not None:
        axes.axhline(
            spent.maximum_epsilon, color=_CEILING, linewidth=1.2, linestyle="--", label="maximum_epsilon"
        )
    axes.set_ylim(0, 1.12 * max([spent.maximum_epsilon or 0.0, *values, 1e-3]))
    axes.set_ylabel(f"epsilon of all runs\nat delta {spent.delta:g}", color=_INK)
    if times:
        locator = AutoDateLocator(minticks=3, maxticks=8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    else:
        axes.set_xticks([])
    axes.grid(axis="y", color=_RULE)
    axes.tick_params(colors=_MUTED)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(_RULE)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower right", labelcolor=_INK)
    stream = io.BytesIO()
    undated: dict[str, Any] = {"Date": None} if kind == "svg" else {}
    with mpl.rc_context({"svg.hashsalt": "fedmed", "svg.fonttype": "none"}):
        canvas.savefig(stream, format=kind, metadata=undated)
    return stream.getvalue()


def page(spent: Spending, consortium: str) -> str:
    """One self-contained HTML page, which prints on paper."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("fedmed_client.site", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawing = picture(spent).decode()
    return environment.get_template("ledger.html").render(
        spent=spent,
        consortium=consortium,
        drawing=Markup(drawing[drawing.index("<svg") :]),  # noqa: S704
        version=version("fedmed"),
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
