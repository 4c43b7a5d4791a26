"""Line and bar charts as geometry; ``charts.html`` draws it. The same numbers give the same drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = 8
_MOST_POINTS = 300
_MOST_DOTS = 40
_MARGIN_LEFT, _MARGIN_RIGHT, _MARGIN_TOP, _MARGIN_BOTTOM = 38.0, 10.0, 10.0, 24.0

Curve = Mapping[int, float]
"""Round -> value, in order; a round without a value is absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """``style``: a class of the style sheet: s0..s7 (one colour and dash each), other, all."""

    label: str
    style: str
    path: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One piece of a stack."""

    x: float
    y: float
    width: float
    height: float
    style: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Everything in units of the view box. ``mark``: where the best round stands."""

    width: float
    height: float
    left: float
    right: float
    bottom: float
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    title: str
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    mark: float | None = None


def site_style(index: int) -> str:
    """The colour of a site by its place in the list; beyond the palette, grey."""
    return f"s{index}" if index < COLOURS else "other"


def line_chart(
    curves: Sequence[tuple[str, str, Curve]],
    *,
    title: str,
    size: tuple[float, float],
    y_range: tuple[float, float] | None = None,
    mark: int | None = None,
) -> Chart | None:
    """Curves given as (label, style, values), the later drawn over the earlier; None where there is no value at all."""
    rounds = sorted({number for _, _, curve in curves for number in curve})
    if not rounds:
        return None
    values = [value for _, _, curve in curves for value in curve.values()]
    y_labels = ticks(*(y_range or (min(values), max(values))), 4)
    low, high = y_range or (y_labels[0], y_labels[-1])
    frame = _Frame(size, (rounds[0], rounds[-1]), (low, high))
    return frame.chart(
        y_labels,
        x_ticks=tuple((frame.x(number), str(number)) for number in _whole_ticks(rounds[0], rounds[-1])),
        title=title,
        lines=tuple(_line(label, style, curve, frame) for label, style, curve in curves if curve),
        mark=frame.x(mark) if mark in rounds else None,
    )


def stack_chart(
    stacks: Mapping[int, Mapping[str, float]], phases: Sequence[str], *, title: str, size: tuple[float, float]
) -> Chart | None:
    """One stack of phases per round, from zero; None where there is nothing to stack. Many rounds are averaged in groups."""
    grouped = _grouped(stacks, phases)
    if not grouped:
        return None
    numbers = list(grouped)
    top = max(sum(parts.values()) for parts in grouped.values()) or 1.0
    y_labels = ticks(0.0, top, 4)
    half = 0.5 * (numbers[1] - numbers[0] if len(numbers) > 1 else 1)
    frame = _Frame(size, (numbers[0] - half, numbers[-1] + half), (0.0, max(top, y_labels[-1])))
    thickness = max((frame.x(numbers[0] + half) - frame.x(numbers[0] - half)) * 0.72, 0.6)
    bars: list[Bar] = []
    for number, parts in grouped.items():
        base = 0.0
        for index, phase in enumerate(phases):
            seconds = parts.get(phase, 0.0)
            y = frame.y(base + seconds)
            label = f"round {number}, {phase}: {seconds:.2f} s"
            bars.append(
                Bar(
                    x=frame.x(number) - thickness / 2,
                    y=y,
                    width=thickness,
                    height=frame.y(base) - y,
                    style=f"p{index % COLOURS}",
                    label=label,
                )
            )
            base += seconds
    return frame.chart(
        y_labels,
        x_ticks=tuple((frame.x(number), str(number)) for number in _whole_ticks(numbers[0], numbers[-1])),
        title=title,
        bars=tuple(bar for bar in bars if bar.height > 0),
    )


def histogram_chart(
    centres: Sequence[float],
    counts: Sequence[float],
    *,
    title: str,
    size: tuple[float, float],
) -> Chart | None:
    """A bar for each bin that holds anything, from the first to the last of these; None where none does."""
    used = [place for place, count in enumerate(counts) if count]
    if not used:
        return None
    first, last = max(used[0] - 1, 0), min(used[-1] + 1, len(counts) - 1)
    y_labels = ticks(min(0.0, *counts), max(0.0, *counts), 4)
    frame = _Frame(size, (first - 0.5, last + 0.5), (y_labels[0], y_labels[-1]))
    thickness = max((frame.x(first + 0.5) - frame.x(first - 0.5)) * 0.9, 0.6)
    bars = []
    for place in used:
        top, bottom = sorted((frame.y(counts[place]), frame.y(0.0)))
        label = f"about {rounded(centres[place])}: {rounded(counts[place])}"
        bars.append(
            Bar(
                x=frame.x(place) - thickness / 2,
                y=top,
                width=thickness,
                height=bottom - top,
                style="p0",
                label=label,
            )
        )
    marks = sorted({round(first + (last - first) * part / 4) for part in range(5)})[
        :: 1 if last - first > 3 else 2
    ]
    return frame.chart(
        y_labels,
        x_ticks=tuple((frame.x(place), rounded(centres[place])) for place in marks),
        title=title,
        bars=tuple(bars),
    )


def rounded(value: float) -> str:
    """To three digits, without an exponent where it is of everyday size."""
    return f"{float(f'{value:.3g}'):,.10g}"


def ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers that cover ``low..high``."""
    span = high - low
    if span <= 0:
        span = abs(high) or 1.0
    raw = span / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True, slots=True)
class _Frame:
    size: tuple[float, float]
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        share = (value - low) / (high - low) if high > low else 0.5
        return round(_MARGIN_LEFT + share * (self.size[0] - _MARGIN_LEFT - _MARGIN_RIGHT), 1)

    def chart(self, y_labels: Sequence[float], **drawn: Any) -> Chart:
        """One in this frame, whose bottom is the least value; ``drawn``: further fields."""
        return Chart(
            width=self.size[0],
            height=self.size[1],
            left=_MARGIN_LEFT,
            right=self.size[0] - _MARGIN_RIGHT,
            bottom=self.y(self.y_range[0]),
            y_ticks=tuple((self.y(value), f"{value:g}") for value in y_labels),
            **drawn,
        )

    def y(self, value: float) -> float:
        low, high = self.y_range
        share = (value - low) / (high - low) if high > low else 0.5
        height = self.size[1] - _MARGIN_TOP - _MARGIN_BOTTOM
        return round(_MARGIN_TOP + (1 - share) * height, 1)


def _line(label: str, style: str, curve: Curve, frame: _Frame) -> Line:
    numbers = sorted(curve)
    stride = math.ceil(len(numbers) / _MOST_POINTS)
    kept = numbers[::-1][::stride][::-1]
    points = [(frame.x(number), frame.y(curve[number])) for number in kept]
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
    return Line(label=label, style=style, path=path, dots=tuple(points) if len(points) <= _MOST_DOTS else ())


def _whole_ticks(low: int, high: int) -> list[int]:
    step = next(
        factor * 10**power
        for power in range(10)
        for factor in (1, 2, 5)
        if factor * 10**power * 6 >= high - low
    )
    return [number for number in range(low, high + 1) if number % step == 0] or [low]


def _grouped(stacks: Mapping[int, Mapping[str, float]], phases: Sequence[str]) -> dict[int, dict[str, float]]:
    numbers = sorted(stacks)
    size = math.ceil(len(numbers) / 120) or 1
    groups = [numbers[first : first + size] for first in range(0, len(numbers), size)]
    return {
        group[0]: {phase: sum(stacks[n].get(phase, 0.0) for n in group) / len(group) for phase in phases}
        for group in groups
    }
