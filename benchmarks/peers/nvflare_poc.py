"""NVFlare's proof-of-concept mode: a server and clients as processes on loopback, with a model that nothing trains.

    python nvflare_poc.py OUT --clients 8 --rounds 3 --channels 64 128 256 512 1024

Writes ``rounds.json``: the seconds of each round by the server's log, from its start until its model is on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

_BEGINS, _ENDS = "Round {} started", "End persist model on server"


def main() -> None:
    """Provision, start, run the job, stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--channels", type=int, nargs="+", required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nvflare-poc-") as folder:
        os.environ["NVFLARE_POC_WORKSPACE"] = folder
        log = _carry_out(options.clients, options.rounds, options.channels)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rounds.json").write_text(json.dumps(list(_seconds(log, options.rounds))))


def _carry_out(clients: int, rounds: int, channels: list[int]) -> list[dict[str, str]]:
    """The lines of the server's log."""
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.recipe.poc_env import PocEnv

    recipe = FedAvgRecipe(
        name="poc",
        model={"class_path": "work.UNet", "args": {"channels": channels, "outputs": 2}},
        min_clients=clients,
        num_rounds=rounds,
        train_script=str(Path(__file__).with_name("nvflare_echo.py")),
    )
    environment = PocEnv(num_clients=clients)
    try:
        run = recipe.execute(environment)
        result = environment.get_job_result(run.job_id)
        print(environment.get_job_status(run.job_id))
        lines = (Path(result) / "workspace" / "log.json").read_text().splitlines()
    finally:
        environment.stop()
    return [json.loads(line) for line in lines]


def _seconds(log: list[dict[str, str]], rounds: int) -> Iterator[float]:
    """Of each round."""
    ends = [_moment(line) for line in log if _ENDS in line["message"]]
    if len(ends) != rounds:
        raise SystemExit(f"NVFlare's log tells of the end of {len(ends)} rounds of {rounds}")
    for number, end in enumerate(ends):
        (began,) = (_moment(line) for line in log if _BEGINS.format(number) in line["message"])
        yield end - began


def _moment(line: dict[str, str]) -> float:
    return datetime.strptime(line["asctime"], "%Y-%m-%d %H:%M:%S,%f").timestamp()


if __name__ == "__main__":
    main()
