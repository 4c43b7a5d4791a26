"""A process as a hardened container runs it: another user, no capability, nothing writable but its home and /tmp.

Needs user namespaces, and no rights. The network is this machine's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fedmed_common

HOME, DATA = "/mnt", "/srv"
_INSIDE = f"""
set -eu
mount --bind "$1" {HOME}
mount --bind "$2" {DATA}
mount -o remount,bind,ro {DATA}
mount -t tmpfs -o size=1g,mode=1777,nosuid,nodev,noexec tmpfs /tmp
mount -o remount,bind,ro /
shift 2
exec setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all --no-new-privs -- "$@"
"""


def sandboxed(command: list[str], *, home: Path, data: Path) -> list[str]:
    """The command line that runs ``command`` so: ``home`` is then at ``/mnt``, ``data`` at ``/srv``, which is read-only."""
    user = ["--user", "--map-user=10001", "--map-group=10001", "--keep-caps", "--mount"]
    return ["unshare", *user, "sh", "-c", _INSIDE, "sandbox", str(home), str(data), *command]


def require(tmp_path: Path) -> None:
    """Skip the test where the machine permits no sandbox."""
    if any(Path(place).is_relative_to("/tmp") for place in (sys.executable, fedmed_common.__file__)):  # noqa: S108
        pytest.skip("python or fedmed lies below /tmp, which a container has for itself")
    probe = sandboxed(["sh", "-c", f"touch {HOME}/x && ! touch {DATA}/x 2>&1"], home=tmp_path, data=tmp_path)
    try:
        done = subprocess.run(probe, cwd="/", capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        pytest.skip("unshare or setpriv is not installed")
    if done.returncode:
        pytest.skip(f"this machine permits no user namespace: {done.stderr.strip()[:200]}")
