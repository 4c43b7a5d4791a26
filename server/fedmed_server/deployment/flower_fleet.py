"""The calls of sites, carried out by Flower's own handlers without the layers of web framework that Flower puts around them.

A request has been admitted by then. Its work is one transaction or two; what Flower's ten layers, one within the other, add to
each is several times as much, and every one of hundreds of sites asks several times a minute.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

from flwr.common.constant import Status
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.error.http import http_error_translator
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.run import RunStatus
from flwr.superlink.servicer.fleet import fleet_handlers
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

Handler = Callable[..., Any]

_PLAIN: Mapping[str, Handler] = {
    "activate-node": fleet_handlers.activate_node,
    "deactivate-node": fleet_handlers.deactivate_node,
    "send-node-heartbeat": fleet_handlers.send_node_heartbeat,
    "push-messages": fleet_handlers.push_messages,
    "get-run": fleet_handlers.get_run,
    "get-fab": fleet_handlers.get_fab,
    "push-object": fleet_handlers.push_object,
    "pull-object": fleet_handlers.pull_object,
}
_WITH_STORE: Mapping[str, Handler] = {
    "pull-messages": fleet_handlers.pull_messages,
    "confirm-message-received": fleet_handlers.confirm_message_received,
}
_STATUS_SECONDS = 1.0
_THREADS = 8
"""The database serves one at a time."""


def handlers(state: LinkState, store: ObjectStore) -> Mapping[str, Handler]:
    """Flower's handler of each call that a site makes, by its path."""
    plain = {name: partial(handler, state=state) for name, handler in _PLAIN.items()}
    with_store = {name: partial(handler, state=state, store=store) for name, handler in _WITH_STORE.items()}
    return {f"/v1/fleet/{name}": handler for name, handler in (plain | with_store).items()}


class ThriftyState:
    """Flower's state as its handlers see it, with less to do for each object of a message.

    That a run goes on is known for a second. What Flower counts of a run's traffic, in a transaction for each object, is not
    counted: a run's history says what each site sent.
    """

    def __init__(self, state: LinkState) -> None:
        self._state = state
        self._running: dict[int, tuple[float, RunStatus]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_run_status(self, run_ids: set[int]) -> dict[int, RunStatus]:
        """As Flower's."""
        now = time.monotonic()
        known = {run: kept for run, kept in self._running.items() if now < kept[0]}
        asked = run_ids - known.keys()
        found = self._state.get_run_status(asked) if asked else {}
        running = {run: status for run, status in found.items() if status.status == Status.RUNNING}
        self._running = known | {run: (now + _STATUS_SECONDS, status) for run, status in running.items()}
        return {run: known[run][1] for run in run_ids & known.keys()} | found

    def store_traffic(self, run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
        """Not here."""


class FleetCalls:
    """An ASGI application around Flower's: it answers the calls of sites as Flower would, and hands everything else on."""

    def __init__(self, app: ASGIApp, state: LinkState) -> None:
        self._app, self._handlers = app, handlers(cast(LinkState, ThriftyState(state)), state.object_store)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="fleet")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self._handlers:
            await self._app(scope, receive, send)
            return
        response = await http_error_translator(Request(scope, receive), self._response)
        await response(scope, receive, send)

    async def _response(self, request: Request) -> Response:
        path, body = request.url.path, await request.body()
        content = await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, path, body)
        return Response(content, media_type=PROTOBUF_MEDIA_TYPE)

    def _answer(self, path: str, body: bytes) -> bytes:
        message = PROTOBUF_REQUEST_TYPES["POST", path]()
        try:
            message.ParseFromString(body)
        except DecodeError as error:
            raise FlowerError(
                ApiErrorCode.INVALID_PROTOBUF_PAYLOAD, f"no {type(message).__name__}"
            ) from error
        answer: bytes = self._handlers[path](message).SerializeToString()
        return answer
