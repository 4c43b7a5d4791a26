"""The long tail's recipe beside federated averaging on real data: nuclei by kind of microscopy, and a hippocampus in parts.

    FEDMED_DATA=... python benchmarks/longtail_real.py --seeds 1 2 3 --folder longtail_real

`nuclei`: images of three kinds, thinned to ten times as many of the commonest as of the rarest, dealt to five sites unevenly.
`hippocampus`: four sites, each of which annotates one of two parts; 'head' and 'tail' are these two, neither of which is rare.
Each seed deals and splits anew. What is there already is not done again. The result is a page and its pictures beside this
file, by today's date.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pages
import tomli_w

FEDMED = str(Path(sys.executable).with_name("fedmed"))
SHIPPED = {"nuclei": "nuclei-longtail", "hippocampus": "hippocampus-unannotated"}
GROUPS = {
    "nuclei": {
        "head": ["nucleus_fluorescent"],
        "medium": ["nucleus_stained"],
        "tail": ["nucleus_brightfield"],
    },
    "hippocampus": {"head": ["anterior"], "tail": ["posterior"]},
}


def main() -> None:
    """Write the experiments, compare, and write the page."""
    parser = pages.parser(__doc__, "longtail_real", [1, 2, 3])
    parser.add_argument("--data", nargs="+", choices=list(SHIPPED), default=list(SHIPPED))
    arguments = parser.parse_args()
    folder = arguments.folder
    for data in arguments.data:
        (folder / f"{data}.toml").write_text(tomli_w.dumps(experiment(data)))
        file = folder / f"longtail-{data}.toml"
        file.write_text(tomli_w.dumps(comparison(data, arguments.seeds)))
        subprocess.run([FEDMED, "compare", str(file), "--folder", str(folder / "runs")], check=True)
    if not arguments.no_page:
        write_page([(data, folder / "runs" / named(data, arguments.seeds)) for data in arguments.data])


def named(data: str, seeds: list[int]) -> str:
    """The comparison's name."""
    return f"longtail-{data}-" + "-".join(map(str, seeds))


def experiment(data: str) -> dict[str, Any]:
    """The shipped one, with enough evaluation rounds for the estimator, and enough rare test images."""
    text = resources.files("fedmed_simulations").joinpath(f"experiments/{SHIPPED[data]}.toml").read_text()
    document = tomllib.loads(text)
    document["federation"] = {"evaluate_every": 1}
    document["train"]["threads"] = 1
    if data == "nuclei":
        document["data"]["splits"] = {"validation": 0.1, "test": 0.4}
        document["simulation"]["partition"]["imbalance"] = 10
    return document


def comparison(data: str, seeds: list[int]) -> dict[str, Any]:
    """FedAvg, pooled and local training, and FedAvg with the recipe's loss and sampler, are always in it."""
    return {
        "name": named(data, seeds),
        "experiment": f"{data}.toml",
        "seeds": seeds,
        "pooled_steps": "total",
        "groups": GROUPS[data],
        "candidates": [{"name": "longtail", "changes": {"recipe.name": "longtail"}}],
    }


def write_page(found: list[tuple[str, Path]]) -> None:
    """The dated page: the comparisons' own tables, and their pictures."""
    name = pages.dated("longtail_real")
    lines = ["# Rare and unannotated classes in real data: the long tail's recipe", "", pages.made_by(), ""]
    for data, results in found:
        text = pages.comparison(results, pages.HERE / name / data)
        lines += [f"## {data}", text.replace("\n## ", "\n### ")]
    pages.write(name, lines)


if __name__ == "__main__":
    main()
