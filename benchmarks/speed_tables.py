"""The page of ``training_speed.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pages
import private_steps

LEFT_OUT = {
    "bf16 with channels last, compiled, or both": "kernels of a GPU are what they are for",
    "peak memory": "a GPU's; `private_steps.py` has a CPU's of private steps",
    "private steps, one patient at a time and several in a pass": "`private_steps.py` measures them on a CPU",
    "the inline engine beside a bare loop": "`simulation_overhead.py` measures it on a CPU",
}
"""Without a GPU, and why."""


@dataclass(frozen=True, kw_only=True)
class About:
    """Where and how it was measured. ``networks``: of each the sizes, by what was measured."""

    device: str
    on_gpu: bool
    steps: int
    repeats: int
    networks: Mapping[str, Mapping[str, str]]
    federation: str


def page(measured: Mapping[str, Any], about: About) -> list[str]:
    """The dated page."""
    lines = [
        "# How fast a site trains",
        "",
        pages.made_by(),
        "",
        f"On {about.device}. Orders of {about.steps} steps with AdamW, through the function that sites train with, on cases "
        f"mapped from disk; medians of {about.repeats} repeats after one that does not count. Ratios are within a repeat, the "
        "least and the most in brackets. Waiting is the share of an order's time in which it had no batch"
        + ("; the GPU may still have been busy in it." if about.on_gpu else "."),
        "",
    ]
    for part, (title, rows) in SECTIONS.items():
        if all(part in found for found in measured.values()):
            lines += [f"## {title}", "", *rows(measured, about), ""]
    return lines + (_bars(measured) if about.on_gpu else _left_out())


def _bars(measured: Mapping[str, Any]) -> list[str]:
    waited = max(one["waited"] for found in measured.values() for one in found["speeds"].values())
    ratio = max(found["engine"]["ratio"] for found in measured.values())
    return [
        f"With light augmentation a site waits at most {100 * waited:.1f} % of its time (bar: 5 %); the inline engine takes at "
        f"most {ratio:.3f} times as long as the bare loop (bar: 1.02)."
    ]


def _left_out() -> list[str]:
    lines = ["## Left out, for want of a GPU", "", "| what | why |", "|---|---|"]
    return [*lines, *(f"| {what} | {why} |" for what, why in LEFT_OUT.items())]


def _of_orders(part: str, base: str) -> Callable[[Mapping[str, Any], About], list[str]]:
    def rows(measured: Mapping[str, Any], about: About) -> list[str]:
        columns = ["network", "way", "samples a second", f"times {base}", "waiting", *["MB"] * about.on_gpu]
        lines = [_row(*columns), "|---" * len(columns) + "|"]
        for network, found in measured.items():
            for way, one in found[part].items():
                lines.append(
                    _row(
                        f"{network}, {about.networks[network]['orders']}",
                        way,
                        f"{one['samples']:.2f}",
                        _ratio(one["times"], one["least"], one["most"]),
                        f"{100 * one['waited']:.1f} %",
                        *[f"{one['megabytes']:.0f}"] * about.on_gpu,
                    )
                )
        return lines

    return rows


def _of_cuts(measured: Mapping[str, Any], about: About) -> list[str]:
    ways = list(next(iter(measured.values()))["cuts"])
    lines = [_row("batches", *ways), "|---" * (len(ways) + 1) + "|"]
    for network, found in measured.items():
        rates = (f"{found['cuts'][way]:.1f}" for way in ways)
        lines.append(_row(f"{network}, {about.networks[network]['cuts']}", *rates))
    return lines


def _of_privacy(measured: Mapping[str, Any], about: About) -> list[str]:
    lines = [_row("network", "way", "ms a step", "times plain", "MB"), "|---" * 5 + "|"]
    for network, found in measured.items():
        one, name = found["privacy"], f"{network}, {about.networks[network]['privacy']}"
        for way, title in private_steps.TITLES.items():
            if way in one["refused"]:
                lines.append(_row(name, title, f"cannot: {one['refused'][way]}", "", ""))
                continue
            ratio = _ratio(one["ratio"][way], one["least"][way], one["most"][way])
            time = f"{1000 * one['median'][way]:.0f}"
            lines.append(_row(name, title, time, ratio, f"{one['megabytes'][way]:.0f}"))
    return lines


def _of_engine(measured: Mapping[str, Any], about: About) -> list[str]:
    lines = [
        f"{about.federation}, in bf16, no batch cut ahead in either.",
        "",
        _row("network", "times the bare loop", "largest difference of a weight"),
        "|---" * 3 + "|",
    ]
    for network, found in measured.items():
        one = found["engine"]
        ratio = f"{one['ratio']:.3f} ({min(one['ratios']):.3f} to {max(one['ratios']):.3f})"
        lines.append(_row(network, ratio, f"{one['largest difference']:.1e}"))
    return lines


def _ratio(median: float, least: float, most: float) -> str:
    return f"{median:.2f} ({least:.2f} to {most:.2f})"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


SECTIONS: dict[str, tuple[str, Callable[[Mapping[str, Any], About], list[str]]]] = {
    "speeds": ("Training", _of_orders("speeds", "fp32")),
    "waits": (
        "Waiting for batches, by augmentation and by how many are cut ahead",
        _of_orders("waits", "none ahead"),
    ),
    "cuts": ("Cutting alone, with the standard augmentation: batches a second", _of_cuts),
    "privacy": ("Private steps", _of_privacy),
    "engine": ("The inline engine beside a bare loop", _of_engine),
}
