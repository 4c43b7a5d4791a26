"""What fewer bytes cost in Dice: the hippocampus with each codec of ``[compression]``, over seeds, beside float32.

    FEDMED_DATA=... python benchmarks/codecs.py --seeds 1 2 3 4 5 --folder codecs

The experiment is the one that ships, but for the table. What is there already is not done again. Bytes are those that the
history says of training orders and their replies: of a reply all that travels, of an order all but the experiment's text. The
result is a page beside this file, by today's date.
"""

from __future__ import annotations

import statistics
import tomllib
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import pages
import runs

from fedmed_common.metrics import class_mean, merge
from fedmed_server import history
from fedmed_server.history import RoundDone

ROWS: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8 up": {"up": "int8"},
    "int8 up, without error feedback": {"up": "int8", "error_feedback": False},
    "int8 up and down": {"up": "int8", "down": "int8"},
    "bf16 up and down, zstd": {"up": "bf16", "down": "bf16", "zstd": True},
    "top 1 % up": {"up": "top", "share": 0.01},
    "top 1 % up, int8 down, zstd": {"up": "top", "share": 0.01, "down": "int8", "zstd": True},
}


def main() -> None:
    """Carry the runs out, and write the page."""
    parser = pages.parser(__doc__, "codecs", [1, 2, 3, 4, 5])
    arguments = parser.parse_args()
    shipped = files("fedmed_simulations").joinpath("experiments/hippocampus.toml").read_text()
    for seed, (row, table) in product(arguments.seeds, ROWS.items()):
        document = tomllib.loads(shipped) | {"seed": seed}
        document["train"]["threads"] = 1
        if table:
            document["compression"] = table
        if runs.simulate(arguments.folder, _name(row, seed), document):
            print(row, seed, measured(arguments.folder, row, seed), flush=True)
    if not arguments.no_page:
        pages.write(pages.dated("codecs"), page(arguments.folder, arguments.seeds))


def measured(folder: Path, row: str, seed: int) -> tuple[float, float, float]:
    """Mean Dice of the best round's model on the test patients, in percent; megabytes up and down, of a site in a round."""
    done = runs.done(folder, _name(row, seed))
    if done is None:
        raise SystemExit(f"{row} of seed {seed} did not end")
    run, ended = done
    dice = class_mean(merge(result.means() for result in ended.test["best"]), "dice")
    records = [record for record in history.read(run / history.FILE) if isinstance(record, RoundDone)]
    sites = [(record, site) for record in records for site in record.train]
    up = statistics.mean(site.bytes_up for _, site in sites)
    also = {(record.round, site.site): site.bytes_down for record in records for site in record.evaluation}
    down = statistics.mean(site.bytes_down + also.get((record.round, site.site), 0) for record, site in sites)
    return 100 * dice, up / 1e6, down / 1e6


def page(folder: Path, seeds: list[int]) -> list[str]:
    """The dated page."""
    lines = [
        "# Fewer bytes, and what they cost in Dice",
        "",
        pages.made_by(),
        "",
        "Mean Dice of both classes on the test patients, in percent, of the best round's model: mean over seeds "
        f"{', '.join(map(str, seeds))}, and the difference to float32 with the same seed. Bytes of a site in a round, down with "
        "those of evaluation, as parts of what float32 takes.",
        "",
        "| `[compression]` | Dice | difference | bytes up | bytes down |",
        "|---|---|---|---|---|",
    ]
    plain = [measured(folder, "float32", seed) for seed in seeds]
    for row in ROWS:
        found = [measured(folder, row, seed) for seed in seeds]
        dice, up, down = (statistics.mean(column) for column in zip(*found, strict=True))
        differences = [one[0] - other[0] for one, other in zip(found, plain, strict=True)]
        spread = f"{statistics.mean(differences):+.2f} ± {statistics.stdev(differences):.2f}"
        told = "" if row == "float32" else spread
        shares = [
            value / statistics.mean(one[place] for one in plain) for place, value in ((1, up), (2, down))
        ]
        lines.append(f"| {row} | {dice:.2f} | {told} | {shares[0]:.3f} | {shares[1]:.3f} |")
    return [*lines, ""]


def _name(row: str, seed: int) -> str:
    word = "".join(letter if letter.isalnum() else "-" for letter in row)
    return f"codecs-{word}-{seed}"


if __name__ == "__main__":
    main()
