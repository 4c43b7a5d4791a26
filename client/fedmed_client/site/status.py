"""How a site is, from what lies in its folder."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from typing import Any

from fedmed_client.site.home import SiteFolder
from fedmed_client.site.start import is_running
from fedmed_client.work.limits import check_now
from fedmed_common import identity
from fedmed_common.children import pid_file
from fedmed_common.errors import PolicyRefusal, ProvisionError


def status(home: SiteFolder) -> dict[str, Any]:
    """The site's name, its processes, whether it would take an order now, and how the link says the connection is.

    Raises:
        ConfigError: the folder holds no site, or its file is wrong.
    """
    site = home.site()
    waits_for = ""
    try:
        check_now(site, home.path)
    except PolicyRefusal as refusal:
        waits_for = str(refusal)
    found: dict[str, Any] = {
        "site": site.name,
        "runs": is_running(home),
        "link": _process(home, "link"),
        "worker": _process(home, "worker"),
        "waits_for": waits_for or None,
        "free_gb": round(shutil.disk_usage(home.path).free / 1e9, 1),
        "certificate_days": None,
        "connection": None,
    }
    with suppress(ProvisionError):
        found["certificate_days"] = identity.days_left(home.certificate())
    with suppress(OSError, ValueError):
        found["connection"] = json.loads(home.status_file.read_bytes())
    return found


def _process(home: SiteFolder, role: str) -> int | None:
    """The number of the process that has the role."""
    try:
        number = int(pid_file(home.path, role).read_text())
        os.kill(number, 0)
    except (OSError, ValueError):
        return None
    return number
