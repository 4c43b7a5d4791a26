"""What a site's call costs the server's process: by Flower's web application as it comes, and as this server carries it out.

Both work on the same database, in one process and one thread's turn, without network and TLS; the two are asked in turn. The
requests are those of a connected site: its heartbeat, and its question for an order while there is none.

    python benchmarks/calls.py
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import sys
import tempfile
import time
from base64 import b64encode
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from starlette.types import ASGIApp

from fedmed_common import identity
from fedmed_common.files import write_atomically
from fedmed_server.deployment import superlink
from fedmed_server.deployment.home import ServerHome
from fedmed_server.provision.create import create
from fedmed_server.provision.folder import ConsortiumFolder


def found(folder: Path) -> ServerHome:
    """A consortium of one site, on paper."""
    file = folder / "consortium.toml"
    site = {"name": "alpha", "contact": "it@alpha.example"}
    file.write_text(
        tomli_w.dumps({"name": "calls", "coordinator": {"address": "127.0.0.1:9443"}, "sites": [site]})
    )
    consortium = ConsortiumFolder(folder / "consortium")
    create(file, consortium)
    consortium.server.prepare()
    return consortium.server


class Site:
    """Asks an application as a site would; ``seconds``: of the process, for each call."""

    def __init__(self) -> None:
        self.key = identity.new_key()
        self.public_key = public_key_to_bytes(self.key.public_key())
        self.node = 0

    def headers(self) -> list[tuple[bytes, bytes]]:
        """With Flower's own authentication, which its application asks for."""
        moment = now().isoformat()
        headers = {
            "content-type": PROTOBUF_MEDIA_TYPE,
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.public_key).decode(),
            TIMESTAMP_HEADER: moment,
            FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(self.key, moment.encode())).decode(),
            "flwr-package-name": "flwr",
            "flwr-package-version": version("flwr"),
            "flwr-component-name": "SuperNode",
        }
        return [(name.encode(), value.encode()) for name, value in headers.items()]

    async def seconds(self, app: ASGIApp, call: str, message: Any) -> float:
        """Of the process, for one call; it must be answered well."""
        body, status = message.SerializeToString(), []
        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "scheme": "https", "path": f"/v1/fleet/{call}",
            "raw_path": f"/v1/fleet/{call}".encode(), "query_string": b"", "root_path": "", "headers": self.headers(),
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])

        began = time.process_time()
        await app(scope, receive, send)
        taken = time.process_time() - began
        if status != [200]:
            raise RuntimeError(f"{call} was answered with {status}")
        return taken


async def measure(home: ServerHome, times: int) -> dict[str, tuple[float, float]]:
    """By call, the medians in seconds: of Flower's application as it comes, and of ours."""
    from fedmed_server.deployment import flower_superlink

    _, ours, nodes = flower_superlink.build(home)
    flowers, site = flower_superlink.flower_app(home), Site()
    site.node = nodes.register({"alpha": site.key.public_key()})["alpha"]
    node = Node(node_id=site.node)
    await site.seconds(
        ours, "activate-node", ActivateNodeRequest(public_key=site.public_key, heartbeat_interval=30)
    )
    calls = {
        "send-node-heartbeat": SendNodeHeartbeatRequest(node=node, heartbeat_interval=30),
        "pull-messages": PullMessagesRequest(node=node),
    }
    medians = {}
    for call, message in calls.items():
        taken = [[await site.seconds(app, call, message) for app in (flowers, ours)] for _ in range(times)]
        theirs, own = zip(*taken[times // 10 :], strict=True)
        medians[call] = statistics.median(theirs), statistics.median(own)
    return medians


def page(medians: dict[str, tuple[float, float]], times: int, today: str) -> str:
    """The day's page."""
    rows = [
        f"| {call} | {theirs * 1000:.2f} | {own * 1000:.2f} | {theirs / own:.1f} |"
        for call, (theirs, own) in medians.items()
    ]
    return "\n".join(
        [
            f"# Calls, {today}",
            "",
            f"`python benchmarks/calls.py --times {times}`; {platform.machine()}, {os.cpu_count()} cores, "
            f"flwr {version('flwr')}, Python {platform.python_version()}. Medians of the process's own time, in ms, without "
            "network, TLS and what the guard checks before. Flower's application checks its own authentication, which ours "
            "leaves to the guard.",
            "",
            "| call | Flower's application as it comes | here | ratio |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Measure, and write a dated page beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedmed-calls-") as temporary:
        home = found(Path(temporary))
        os.environ.update(superlink.environment(home))
        medians = asyncio.run(measure(home, options.times))
    today = datetime.now(UTC).date().isoformat()
    text = page(medians, options.times, today)
    write_atomically(Path(__file__).parent / f"calls-{today}.md", text.encode())
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
