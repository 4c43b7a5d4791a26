"""One page that shows the newest result of every benchmark: ``results.md``, with the plots that there are.

python benchmarks/results.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pages

_DATED = re.compile(r"(?P<name>.+)-(?P<date>\d{4}-\d{2}-\d{2})\.(md|json)")
_OVERHEAD = "simulation_overhead"


def newest() -> dict[str, Path]:
    """By benchmark the newest of its dated pages; where there is none, of its files of figures."""
    found: dict[str, Path] = {}
    for file in sorted(pages.HERE.glob("*-*.*"), key=lambda file: (file.suffix == ".md", file.name)):
        match = _DATED.fullmatch(file.name)
        if match:
            found[match["name"]] = file
    return dict(sorted(found.items()))


def lines(found: Mapping[str, Path]) -> Iterator[str]:
    """The page's."""
    yield from (
        "# The newest results",
        "",
        "Written by `benchmarks/results.py`; what each asks is in [README.md](README.md).",
        "",
    )
    yield from ("| benchmark | measured | |", "|---|---|---|")
    for name, file in found.items():
        yield f"| `{name}.py` | {file.stem[-10:]} | [{_title(file)}]({file.name}) |"
    yield ""
    if _OVERHEAD in found and found[_OVERHEAD].suffix == ".json":
        yield from _overhead(json.loads(found[_OVERHEAD].read_text())["results"])
    for file in found.values():
        plot = file.with_suffix(".png")
        if plot.exists():
            yield from (
                f"## {_title(file)}",
                "",
                f"[All of it]({file.name}).",
                "",
                f"![plot]({plot.name})",
                "",
            )


def _overhead(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The ratios, which have no page of their own."""
    yield from ("## A simulated run over a bare PyTorch loop of the same steps", "")
    yield "| sites | parameters | rounds x steps | inline | inline, with MLflow | peak memory, MB |"
    yield "|---|---|---|---|---|---|"
    for one in results:
        ratios = [
            f"{one[name]['median_ratio_to_bare']:.3f}" if name in one else "not run"
            for name in ("inline", "inline_mlflow")
        ]
        size = f"{one['sites']} | {one['parameters']:,} | {one['rounds']} x {one['steps']}"
        yield f"| {size} | {' | '.join(ratios)} | {one['peak_memory_mb']:.0f} |"
    yield ""


def _title(file: Path) -> str:
    """What the page says it is, without its date."""
    if file.suffix == ".json":
        return "figures"
    return re.sub(r",? \d{4}-\d{2}-\d{2}$", "", file.read_text().splitlines()[0].removeprefix("# "))


def main() -> None:
    """Write it."""
    pages.write("results", list(lines(newest())))


if __name__ == "__main__":
    main()
