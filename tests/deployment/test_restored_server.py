"""A server that is lost in the middle of a run, and restored from a backup that was made while it ran."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from fedmed_server.history import RoundDone
from fedmed_server.state import model_file
from fedmed_simulations.rehearsal.equality import difference

SCRIPTS = Path(__file__).parents[2] / "deploy" / "backup"


def test_a_restored_server_ends_the_run_with_the_same_weights(running, tmp_path: Path) -> None:
    consortium = running.consortium
    consortium.wait_connected()
    run = consortium.launch(running.experiment)
    consortium.wait_until(lambda: any(isinstance(r, RoundDone) for r in consortium.records(run)), "a round")
    command = [
        "env",
        f"PYTHON={sys.executable}",
        SCRIPTS / "backup.sh",
        consortium.server,
        tmp_path,
        "--with-keys",
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    consortium.kill("server")
    shutil.rmtree(consortium.server)
    subprocess.run([SCRIPTS / "restore.sh", made.stdout.strip(), consortium.server], check=True, timeout=120)
    consortium.start_server()
    assert consortium.wait_ended(run).status == "completed"
    for kind in ("best", "last"):
        ended = model_file(consortium.run_folder(run), kind)
        assert difference(ended, model_file(running.whole, kind)) == ""
