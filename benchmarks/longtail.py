"""The long tail's recipe beside federated averaging, pooled and local training, on synthetic hospitals with rare lesions.

    python benchmarks/longtail.py --seeds 2 3 4 6 7 --folder longtail

Each seed has a federation of its own, and held-out patients of the same hospitals among whom no lesion is rare. What is there
already is not made again, so the benchmark can be interrupted. The result is a page and its pictures beside this file, by
today's date.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pages

FEDMED = str(Path(sys.executable).with_name("fedmed"))
SITES, PATIENTS, HELD_OUT, SHAPE, IMBALANCE, ALPHA, HELD_OUT_SHARE = 6, 96, 16, "48,48,24", 50, 0.3, 0.4

CHOSEN_ON = "The recipe's settings were chosen on seeds 0, 1 and 5; parts of 2 and 6 had been seen with its former ones."

COMPARISON = """name = "{name}"
experiment = "longtail"
seeds = {seeds}
federations = "federation-{{seed}}"
pooled_steps = "total"

[groups]
head = ["liver", "spleen", "kidneys"]
medium = ["liver_lesion", "kidney_cyst"]
tail = ["spleen_lesion", "bone_lesion", "pancreas_cyst"]

[test]
federation = "held-out-{{seed}}"

[[candidates]]
name = "longtail"
changes = {{ "recipe.name" = "longtail" }}

[[candidates]]
name = "pooled_plain"
kind = "pooled"
changes = {{ "recipe.name" = "fedavg" }}
{more}"""

ABLATIONS = {
    "no_sampler": ["rarity", "kept_moments", "holders", "operating_point"],
    "no_rarity": ["rare", "kept_moments", "holders", "operating_point"],
    "no_holders": ["rare", "rarity", "kept_moments", "operating_point"],
    "no_operating_point": ["rare", "rarity", "kept_moments", "holders"],
    "no_kept_moments": ["rare", "rarity", "holders", "operating_point"],
}
"""The recipe without one of its pieces, all with its momentum."""

BARS = (
    ("tail", 0.15, "tail Dice"),
    ("worst_site", 0.03, "worst site"),
    ("mean", 0.05, "mean Dice"),
    ("head", -0.01, "head Dice"),
    ("false_positives", 0.05, "false positives on absent classes"),
)


def main() -> None:
    """Make the federations, compare, and write the page."""
    parser = pages.parser(__doc__, "longtail", [2, 3, 4, 6, 7])
    parser.add_argument("--ablations", action="store_true", help="also without each of its pieces")
    arguments = parser.parse_args()
    folder = arguments.folder
    for seed in arguments.seeds:
        draw(folder, seed)
    name = "longtail-" + "-".join(map(str, arguments.seeds)) + ("-ablations" if arguments.ablations else "")
    file = folder / f"{name}.toml"
    more = "".join(_ablation(*item) for item in ABLATIONS.items()) if arguments.ablations else ""
    file.write_text(COMPARISON.format(name=name, seeds=arguments.seeds, more=more))
    subprocess.run([FEDMED, "compare", str(file), "--folder", str(folder / "runs")], check=True)
    if not arguments.no_page:
        write_page(folder / "runs" / name, arguments.ablations)


def draw(folder: Path, seed: int) -> None:
    """The hospitals of a seed, and their held-out patients."""
    common = ["--sites", SITES, "--shape", SHAPE, "--seed", seed]
    trained = ["--patients", PATIENTS, "--imbalance", IMBALANCE, "--alpha", ALPHA, "--unannotated", 0]
    held = ["--patients", HELD_OUT, "--held-out", "--head-share", HELD_OUT_SHARE]
    for name, options in ((f"federation-{seed}", trained), (f"held-out-{seed}", held)):
        command = [FEDMED, "phantom", folder / name, *common, *options]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


def write_page(results: Path, ablations: bool) -> None:
    """The dated page: what was run, the bars, the comparison's own tables, and its pictures."""
    found = json.loads((results / "comparison.json").read_text())
    name = pages.dated("longtail_ablations" if ablations else "longtail")
    lines = [
        "# Rare lesions: the long tail's recipe",
        "",
        pages.made_by(),
        "",
        f"{SITES} sites of {PATIENTS} patients, imbalance {IMBALANCE}, alpha {ALPHA}, one vacant class a site; tested on "
        f"{HELD_OUT} other patients of each site, each lesion on {HELD_OUT_SHARE:.0%} of them. " + CHOSEN_ON,
        "",
        "`pooled` and `local` have the recipe's loss and sampler, `pooled_plain` has not.",
        "",
        *bars(found),
        pages.comparison(results, pages.HERE / name),
    ]
    pages.write(name, lines)


def bars(found: dict[str, Any]) -> list[str]:
    """What was asked beside what was measured, against federated averaging."""
    rows = ["| against FedAvg | asked | measured | 95 % interval |", "|---|---|---|---|"]
    competitors = found["competitors"]
    for column, asked, title in BARS:
        value = competitors["longtail"]["differences"][column]
        at = "at most" if column == "false_positives" else "at least"
        rows.append(
            f"| {title} | {at} {asked:+.2f} | {value['value']:+.3f} | {value['low']:+.3f} to {value['high']:+.3f} |"
        )
    tails = {name: _mean(competitors[name]["columns"]["tail"]) for name in ("fedavg", "longtail", "pooled")}
    gap = tails["pooled"] - tails["fedavg"]
    closed = (tails["longtail"] - tails["fedavg"]) / gap if gap else float("nan")
    rows += [
        f"| share of the gap in tail from FedAvg to pooled that is closed | at least 0.50 | {closed:.2f} | |",
        f"| tail Dice of pooled training with the same loss and sampler | 0.30 to 0.70 | {tails['pooled']:.3f} | |",
    ]
    return [*rows, ""]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _ablation(name: str, pieces: list[str]) -> str:
    also = json.dumps(pieces)
    return (
        f'\n[[candidates]]\nname = "{name}"\nchanges = {{ "recipe.name" = "fedavgm", "recipe.also" = {also}, '
        '"recipe.settings.momentum.momentum" = 0.5 }\n'
    )


if __name__ == "__main__":
    main()
