"""Flower's Fleet API as a site calls it; with ``messages`` the only part of the link that knows Flower's private modules.

Each call is one attempt: what fails is told as what it means, and trying again is the caller's. A request carries the site's
certificate, and the site's signature over all of it in the place of Flower's own, which covers the time alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import httpx
from flwr.app import Message, RecordDict
from flwr.app.message.message import make_message
from flwr.common.serde import fab_from_proto, message_from_proto, message_to_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedmed_client.link import problems
from fedmed_client.link.messages import Announced
from fedmed_client.link.reach import CONNECT_SECONDS, Reach
from fedmed_common.errors import ConnectionProblem, TransportAway
from fedmed_common.signed_requests import INTERVAL_HEADER, REFUSAL_HEADER, Stamp, sign

T = TypeVar("T")

AT_ONCE = 4
"""Objects on their way at the same time: each is a request of its own, and a hospital may be far away."""

FIRST_ANSWER_SECONDS, GOODBYE_SECONDS = 5.0, 2.0
_RUN_OVER = frozenset(
    {
        ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED,
        ApiErrorCode.FLEET_GET_RUN_FAILED,
        ApiErrorCode.FLEET_GET_FAB_FAILED,
    }
)
_INTERVAL = re.compile(r"[0-9]{1,6}(\.[0-9])?")
_STALE_LINK = frozenset({"in-use", "another-node"})


class RunOver(Exception):
    """Nobody waits for the reply any more: the Flower run has ended, or the message is gone."""


class NotTaken(RunOver):
    """The server does not take a part of the reply: it is too large, or damaged."""


class NotYet(Exception):
    """The message was announced before all of it is at the server."""


class ServerBusy(TransportAway):
    """The server has too much to do, and has not looked at the request: nothing of it is lost."""


class LinkForgotten(Exception):
    """The server does not take this link for the site's any more; ``problem`` is what that means where it goes on."""

    def __init__(self, problem: ConnectionProblem | TransportAway) -> None:
        self.problem = problem
        super().__init__(str(problem))


@dataclass(slots=True, kw_only=True)
class Upload:
    """What is still to be sent of an announced reply. ``refused``: the server did not take an object in this session, because
    it has it already, or because the session is over; the reply is to be announced once more."""

    run: int
    session: str
    left: dict[str, InflatableObject] = field(repr=False)
    refused: bool = False


class Fleet:
    """One site's calls. All of them raise the same; methods may be called from several threads.

    Raises:
        ConnectionProblem: the server cannot be reached, or refuses the site.
        TransportAway: it answers that it cannot just now; :class:`ServerBusy` where it did nothing of what was asked.
        LinkForgotten: the link must be activated anew.
        RunOver: where a run is concerned.
    """

    def __init__(self, reach: Reach) -> None:
        self._reach, self._node = reach, 0
        self._client = _Client(reach)

    @property
    def interval_seconds(self) -> float:
        """What the server said last that a site is to leave between two questions."""
        return self._client.signed.interval_seconds

    def activate(self, lease_seconds: float) -> None:
        """Become the site's link. The server asks anew whatever it asked a link before this one.

        It takes the site for gone after two leases without a beat.
        """
        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(self._reach.key.public_key()), heartbeat_interval=lease_seconds
        )
        try:
            self._node = self._call(self._client.ActivateNode, request).node_id
        except LinkForgotten as refused:
            raise refused.problem from None

    def deactivate(self) -> None:
        """Say goodbye; whether it is heard does not matter."""
        with suppress(ConnectionProblem, TransportAway, LinkForgotten):
            self._call(self._client.DeactivateNode, DeactivateNodeRequest(node_id=self._node))

    def beat(self, lease_seconds: float) -> None:
        """Say that the link is there, and for how long that holds."""
        request = SendNodeHeartbeatRequest(node=self._me, heartbeat_interval=lease_seconds)
        if not self._call(self._client.SendNodeHeartbeat, request).success:
            raise LinkForgotten(TransportAway("the coordinator's server does not know this link any more"))

    def pull(self) -> Announced | None:
        """The next message, if there is one. The server hands it out once: after a failure, activate anew."""
        answer = self._call(self._client.PullMessages, PullMessagesRequest(node=self._me))
        if not answer.messages_list:
            return None
        return Announced(
            message=message_from_proto(answer.messages_list[0]), tree=answer.message_object_trees[0]
        )

    def pull_object(self, run: int, name: str) -> bytes:
        """One object of a message.

        Raises:
            NotYet: it will come.
        """
        request = PullObjectRequest(node=self._me, run_id=run, object_id=name)
        answer = self._call(self._client.PullObject, request)
        if not answer.object_found:
            raise RunOver("a part of the message is gone")
        if not answer.object_available:
            raise NotYet
        content: bytes = answer.object_content
        if hashlib.sha256(content).hexdigest() != name:
            raise RunOver("a part of the message is damaged")
        return content

    def confirm(self, announced: Announced) -> None:
        """Say that the message is here whole, so that the server may forget it."""
        request = ConfirmMessageReceivedRequest(
            node=self._me, run_id=announced.run, message_object_id=announced.message.metadata.message_id
        )
        self._call(self._client.ConfirmMessageReceived, request)

    def check_run(self, run: int) -> str:
        """The digest of the run's bundle, while the run goes on."""
        answer = self._call(self._client.GetRun, GetRunRequest(node=self._me, run_id=run))
        return str(answer.run.fab_hash)

    def bundle(self, run: int, digest: str) -> bytes:
        """The run's bundle."""
        request = GetFabRequest(node=self._me, hash_str=digest, run_id=run)
        return fab_from_proto(self._call(self._client.GetFab, request).fab).content

    def announce(self, reply: Message) -> Upload:
        """Say what the reply consists of; what of it the server lacks is to be uploaded. Said again, it counts once."""
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
            bare = make_message(metadata=reply.metadata, content=RecordDict())
            request = PushMessagesRequest(
                node=self._me, messages_list=[message_to_proto(bare)], message_object_trees=[tree]
            )
        answer = self._call(self._client.PushMessages, request)
        left = {name: objects[name] for name in answer.objects_to_push}
        return Upload(run=reply.metadata.run_id, session=answer.session_id, left=left)

    def upload(self, upload: Upload) -> None:
        """Send what is left of an announced reply; after a failure, call it again.

        The server may have taken the reply's header over by then: announced anew, it would not ask for the rest any more.
        """
        with no_object_id_recompute(), ThreadPoolExecutor(AT_ONCE) as pool:
            while upload.left:
                names = list(upload.left)[:AT_ONCE]
                contents = [upload.left[name].deflate() for name in names]
                list(pool.map(partial(self._push_object, upload), names, contents))

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    @property
    def _me(self) -> Node:
        return Node(node_id=self._node)

    def _push_object(self, upload: Upload, name: str, content: bytes) -> None:
        request = PushObjectRequest(
            node=self._me,
            run_id=upload.run,
            object_id=name,
            object_content=content,
            session_id=upload.session,
        )
        upload.refused |= not self._call(self._client.PushObject, request).stored
        del upload.left[name]

    def _call(self, call: Callable[[Any], Any], request: Any) -> Any:
        try:
            return call(request)
        except httpx.TransportError as error:
            raise problems.of_transport(error, self._reach) from error
        except (
            ValueError,
            httpx.DecodingError,
        ) as error:  # the former Flower's, of a body that is no message
            raise problems.not_the_coordinator(self._reach, "its answer cannot be read") from error


class _Client(FleetHttpClient):
    """Flower's client over connections of our own: with the site's certificate, through its proxy, without redirections."""

    def __init__(self, reach: Reach) -> None:
        self.signed = _Signed(reach)
        interceptors = (
            RuntimeVersionHttpInterceptor("SuperNode"),
            self.signed,
        )
        super().__init__(f"https://{reach.address}", interceptors=interceptors)
        self._client.close()
        self._client = reach.client()

    def ActivateNode(self, request: ActivateNodeRequest) -> Any:  # noqa: N802
        """Flower's, with less patience: whoever starts a site waits for this call."""
        with self._within(FIRST_ANSWER_SECONDS):
            return super().ActivateNode(request)

    def DeactivateNode(self, request: DeactivateNodeRequest) -> Any:  # noqa: N802
        """Flower's, with least patience: it is said on the way out."""
        with self._within(GOODBYE_SECONDS):
            return super().DeactivateNode(request)

    @contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        usual = self._client.timeout
        self._client.timeout = httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))
        try:
            yield
        finally:
            self._client.timeout = usual


class _Signed:
    """Signs each request, and tells what each answer that is none means. Innermost, so that Flower sees only answers."""

    def __init__(self, reach: Reach) -> None:
        self._reach, self.interval_seconds = reach, 0.0

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        request, reach = context.request, self._reach
        sign_for(reach, request, request.content)
        response = call_next(context)
        if response.status_code != httpx.codes.OK:
            raise meant_by(response, reach)
        if response.headers.get("content-type", "").partition(";")[0] != PROTOBUF_MEDIA_TYPE:
            raise problems.of_answer(response, reach)
        self.interval_seconds = _interval_seconds(response)
        return response


def sign_for(reach: Reach, request: httpx.Request, body: bytes) -> None:
    """Say in the request who asks, and sign that with its path and the body."""
    stamp = Stamp.new(site=reach.connection.site, instance=reach.instance, boot=reach.boot)
    request.headers.update(sign(reach.key, request.method, request.url.path, body, stamp))


def _interval_seconds(response: httpx.Response) -> float:
    """None, where the server or what is on the way said something else."""
    said = response.headers.get(INTERVAL_HEADER, "")
    return float(said) if _INTERVAL.fullmatch(said) else 0.0


def meant_by(response: httpx.Response, reach: Reach) -> Exception:
    """What an answer other than "yes" means."""
    reason = response.headers.get(REFUSAL_HEADER, "")
    if reason:
        return _refused(reason, response, reach)
    status, code = response.status_code, _flower_code(response)
    if code in _RUN_OVER:
        return RunOver("the run has ended")
    if status in {httpx.codes.UNAUTHORIZED, httpx.codes.PRECONDITION_FAILED} and _is_json(response):
        return LinkForgotten(TransportAway(f"the coordinator's server does not take this link ({status})"))
    if status == httpx.codes.SERVICE_UNAVAILABLE and code is None and _is_json(response):
        return ServerBusy("the coordinator's server has too much to do just now")
    if _is_json(response) or status == httpx.codes.INTERNAL_SERVER_ERROR:
        return TransportAway(f"the coordinator's server cannot do what it is asked just now ({status})")
    return problems.of_answer(response, reach)


def _refused(reason: str, response: httpx.Response, reach: Reach) -> Exception:
    if reason == "replayed":  # by a server that was started anew; what is signed from now on it takes
        return TransportAway("the coordinator's server took a request for a repeated one")
    if reason == "disk":
        return TransportAway("the coordinator's server has no space left")
    if reason == "not-asked":
        return RunOver("nobody waits for these numbers, or sends them, any more")
    if reason == "digest":
        return NotTaken("numbers of the reply are not those that it names")
    if reason == "too-large":
        return NotTaken("a part of the reply is larger than the server takes")
    problem = problems.of_refusal(reason, response.headers, reach)
    return LinkForgotten(problem) if reason in _STALE_LINK else problem


def _flower_code(response: httpx.Response) -> int | None:
    with suppress(ValueError):
        answer = json.loads(response.content)
        if isinstance(answer, dict) and isinstance(answer.get("code"), int):
            return int(answer["code"])
    return None


def _is_json(response: httpx.Response) -> bool:
    return bool(response.headers.get("content-type", "").startswith("application/json"))
