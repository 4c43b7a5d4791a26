"""What ten thousand hostile replies do to a round, and what memory the reading of the worst ones takes.

Three sites train; one answers with what hypothesis draws, as records and, a level below, as the objects that Flower stores a
reply as. After each round its parameters are compared with those of the two good sites alone, bit for bit. A drawn reply
that a good site might have given is taken, and then the round is compared with one in which a good site gives it.

    python benchmarks/hostile_replies.py --examples 10000
"""

from __future__ import annotations

import argparse
import gc
import logging
import platform
import resource
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from arena import (
    ALONE,
    HONEST,
    LARGE,
    REPLY,
    assert_equal,
    by_objects,
    by_records,
    peak,
    play_parcel,
    play_record,
)
from hostile import OBJECTS, RECORDS, objects, records
from secret_arena import CASES, POISON, SECRET, answers, play_answer, play_secret

from fedmed_server.history import SiteResult

T = TypeVar("T")
_REPEATS = 20
_MEMORY = (
    "chunk named a thousand times",
    "chunk twice as large",
    "two thousand empty chunks",
    "array under fifty thousand names",
    "words of a megabyte",
    "tree that hides the arrays",
)


def told(result: SiteResult) -> str:
    """What became of a reply."""
    return "ok" if result.outcome == "ok" else f"{result.outcome}: {result.code}"


def play(strategy: SearchStrategy[T], judge: Callable[[T], str], examples: int, start: int) -> Counter[str]:
    """Draw and play so many; what became of them. An example that does harm ends all with an error that shows it."""
    found: Counter[str] = Counter()

    @seed(start)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(drawn: T) -> None:
        found[judge(drawn)] += 1

    run()
    return found


def known() -> Counter[str]:
    """Play those that are known by name, none of which may count."""
    found: Counter[str] = Counter()
    for name, spoil in RECORDS.items():
        parameters, result = by_records(spoil(REPLY))
        assert result.outcome == "rejected", name
        assert_equal(parameters, ALONE)
        found[told(result)] += 1
    for name, tamper in OBJECTS.items():
        parameters, result = by_objects(tamper)
        assert result.outcome != "ok", name
        assert_equal(parameters, ALONE)
        found[told(result)] += 1
    return found


def known_in_secret() -> Counter[str]:
    """The same in the stages of a secure sum."""
    found: Counter[str] = Counter()
    for stage, name in CASES:
        parameters, what = play_secret(stage, SECRET[stage][name])
        assert parameters is not None, what
        found[what] += 1
    for name, (stage, spoil, said) in POISON.items():
        parameters, what = play_secret(stage, spoil)
        assert parameters is None, name
        assert said in what, name
        found["the round ended: " + ("too long" if "longer" in what else "not to be opened")] += 1
    return found


def resident_mb() -> float:
    """The memory that this process has in use."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def written(paragraph: str) -> list[str]:
    """A paragraph in lines of a page."""
    return [*textwrap.wrap(paragraph, 120, break_long_words=False, break_on_hyphens=False), ""]


def main() -> None:
    """Play, measure, and write a dated file beside this one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    by_name = known()
    before = resident_mb()
    for _ in range(_REPEATS):
        known()
    grown, started = resident_mb() - before, time.perf_counter()
    by_record = play(
        records(REPLY),
        lambda drawn: told(play_record(drawn)),
        options.examples - options.examples // 3,
        options.seed,
    )
    by_object = play(
        objects(HONEST), lambda drawn: told(play_parcel(drawn)), options.examples // 3, options.seed
    )
    seconds = time.perf_counter() - started
    by_name_in_secret = known_in_secret()
    in_secret = play(answers(), play_answer, options.examples // 3, options.seed)
    date = datetime.now(UTC).date().isoformat()
    packages = ", ".join(f"{name} {version(name)}" for name in ("fedmed", "flwr", "numpy", "hypothesis"))
    model = sum(array.nbytes for array in LARGE.values()) / 1e6
    lines = [
        "# Hostile replies",
        "",
        *written(f"{date}; {platform.machine()}, Python {platform.python_version()}; {packages}."),
        *written(
            f"Replies drawn with seed {options.seed}: {by_record.total()} records and {by_object.total()} sets of objects, each "
            f"in a round of its own with two good sites; and {by_name.total()} known by name. After every round the parameters "
            "were bit for bit those of the good sites alone, or, where a drawn reply was one that a good site may give, those of "
            f"a round in which it does. No round failed. The drawn rounds took {seconds:.0f} s."
        ),
        "| what became of the reply | known by name | drawn records | drawn objects |",
        "|---|---|---|---|",
    ]
    outcomes = sorted(by_name.keys() | by_record.keys() | by_object.keys())
    lines += [f"| {name} | {by_name[name]} | {by_record[name]} | {by_object[name]} |" for name in outcomes]
    lines += [
        "",
        *written(
            "`ok`: the reply is one that a good site may give, as where a drawn byte is one of a number. `transport-3`: an "
            "object is not in Flower's store."
        ),
        *written(
            f"And {by_name_in_secret.total()} by name and {in_secret.total()} drawn in the four stages of a secure sum of four "
            "sites: keys, shares, the masked vector, what opens the sum. The sum was bit for bit that of a round in which the "
            "site is lost in that stage, or the round ended; only another vector of the right form gives another sum."
        ),
        "| what became of the reply | known by name | drawn |",
        "|---|---|---|",
        *(
            f"| {name} | {by_name_in_secret[name]} | {in_secret[name]} |"
            for name in sorted(by_name_in_secret.keys() | in_secret.keys())
        ),
        "",
        *written(
            f"Over {_REPEATS * by_name.total()} more rounds with those known by name the process grew by {grown:.1f} MB. Memory "
            f"that the reading of one reply takes at its peak, in models of {model:.0f} MB; the server's part of HTTP, which "
            "runs in the same process here, is in it:"
        ),
        "| reply | models |",
        "|---|---|",
        f"| a good one | {peak(None):.2f} |",
        *(f"| {name} | {peak(OBJECTS[name]):.2f} |" for name in _MEMORY),
        "",
        f"Command: `python benchmarks/hostile_replies.py --examples {options.examples} --seed {options.seed}`",
    ]
    file = Path(__file__).parent / f"hostile_replies-{date}.md"
    file.write_text("\n".join(lines) + "\n")
    print(file.read_text())


if __name__ == "__main__":
    main()
