"""The work on NVFlare's simulator, by its own recipe of federated averaging.

python nvflare_simulator.py WORK OUT --workers N
"""

from __future__ import annotations

import argparse
import re
import tempfile
from datetime import datetime
from pathlib import Path

import torch
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv
from work import Work, write

_BEGINS, _ENDS = "loading initial model from persistor", "End persist model on server"
"""What the server says right before its first round, and at the end of each."""


def main() -> None:
    """Run it; ``--workers`` clients work at once. The rounds' times are those of the server's log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work")
    parser.add_argument("out")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    work = Work.read(options.work)
    with tempfile.TemporaryDirectory(prefix="nvflare-") as folder:
        start = Path(folder) / "start.pt"
        torch.save(work.start(), start)
        recipe = FedAvgRecipe(
            name="peers",
            model={"class_path": "work.UNet", "args": {"channels": work.channels, "outputs": work.outputs}},
            initial_ckpt=str(start),
            min_clients=len(work.names),
            num_rounds=work.rounds,
            train_script=str(Path(__file__).with_name("nvflare_client.py")),
            train_args=f"--work {Path(options.work).absolute()}",
        )
        environment = SimEnv(clients=list(work.names), num_threads=options.workers, workspace_root=folder)
        run = recipe.execute(environment)
        print(run.get_result())
        place = Path(folder) / "peers" / "server"
        log = "\n".join(file.read_text() for file in place.rglob("log.txt"))
        (model,) = place.rglob("FL_global_model.pt")
        weights = torch.load(model, weights_only=True)
    write(options.out, weights["model"], _last(log, _BEGINS), _last(log, _ENDS))


def _last(log: str, what: str) -> float:
    """When the server's log says it last."""
    said = re.findall(rf"^([\d-]+ [\d:]+,\d+).*{what}", log, re.MULTILINE)
    if not said:
        raise SystemExit(f"NVFlare's log does not say '{what}'")
    return datetime.strptime(said[-1], "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()


if __name__ == "__main__":
    main()
