"""FLamby's table of Fed-TCGA-BRCA, made again with this project's recipes on the file that the user has.

python benchmarks/tcga_brca.py --data .../flamby/datasets/fed_tcga_brca/brca.csv --seeds 42 43 44 45 46
"""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean

from fedmed_simulations.published.tcga_brca import PUBLISHED, c_indices, compare
from fedmed_simulations.published.tcga_brca_files import FILE, read

BESIDE = Path(os.environ.get("FEDMED_DATA", "../shared/data")) / "tcga_brca" / FILE


def main() -> None:
    """Train every row with every seed, and write a dated page beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=BESIDE, help="FLamby's brca.csv, its split beside it")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(42, 52)), help="two or more")
    options = parser.parse_args()
    if len(set(options.seeds)) < 2:
        parser.error("a standard deviation needs two seeds or more")
    regions = read(options.data)
    rows = []
    for name, published in PUBLISHED.items():
        ours = [mean(c_indices(name, regions, seed)) for seed in options.seeds]
        outcome = compare(name, ours)
        rows.append(
            f"| {name} | {published.c_index:.3f} ± {published.deviation:.3f} "
            f"| {outcome.c_index:.3f} ± {outcome.deviation:.3f} | {outcome.c_index - published.c_index:+.3f} "
            f"| {outcome.tolerance:.3f} | {'within' if outcome.within else 'outside'} "
            f"| {' '.join(f'{value:.3f}' for value in ours)} |"
        )
        print(rows[-1], flush=True)
    write_page(rows, options.seeds)


def write_page(rows: list[str], seeds: list[int]) -> None:
    """The dated page."""
    today = datetime.now(UTC).date().isoformat()
    text = "\n".join(
        [
            f"# FLamby's Fed-TCGA-BRCA, {today}",
            "",
            f"`python benchmarks/tcga_brca.py --data {FILE} --seeds {' '.join(map(str, seeds))}`; "
            f"torch {version('torch')}, numpy {version('numpy')}. C-index: the mean of the six regions' test C-indices, then "
            "mean ± standard deviation over seeds. Published: FLamby's result files of seeds 42 to 46. A seed's first weights "
            "are FLamby's; the order of patients is not. Tolerance: two standard errors of the difference, "
            "2 sqrt(sd²/5 + sd²/seeds).",
            "",
            "| strategy | published | ours | difference | tolerance | | ours by seed |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    (Path(__file__).parent / f"tcga_brca-{today}.md").write_text(text)


if __name__ == "__main__":
    main()
