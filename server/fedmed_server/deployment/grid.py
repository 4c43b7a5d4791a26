"""Flower's grid for a server that trusts no reply and outlives its own network.

Flower reads a reply in memory before anyone has looked at it: one chunk of 5 MB that an array names many times becomes
gigabytes. Here a reply is read object by object against what was asked for, and one that cannot be read is that site's
rejected reply, never the end of the run. A server that does not answer for a while is an error that can be told apart from
one that will not answer again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.run import RunNotRunningException
from flwr.superlink.grid.http_grid import HttpGrid

from fedmed_common import wire_files
from fedmed_common.errors import RejectedReply, RepliesLost, TransportAway, TransportLost, WireError
from fedmed_common.wire_files import LEAST_BYTES
from fedmed_server import gate
from fedmed_server.deployment.objects import Budget, read_message
from fedmed_server.deployment.shelf import Shelf

_PATIENCE_SECONDS = 5.0
_UNREAD = {reason: code for code, reason in gate.UNREAD.items()}
_ENDED = frozenset({httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN})
_NOT_ASKED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_PULL = "/pull-messages"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """A reply that Flower has handed over, and whose objects are still in its store. ``bare``: it announces no arrays."""

    header: MessageProto
    bare: bool


class GuardedGrid(HttpGrid):
    """The grid of a deployed run. ``set_limit`` comes before replies are pulled; until then none may hold arrays.

    Every method raises :class:`TransportAway` where the server does not answer for some seconds, and :class:`TransportLost`
    where it answers that the Flower run is over.
    """

    def __init__(
        self,
        address: str,
        shelf: Shelf,
        *,
        token: str,
        root_certificates: bytes | None = None,
        insecure: bool = False,
    ) -> None:
        super().__init__(address, insecure, root_certificates, token=token)
        self._shelf = shelf
        self._retry_invoker = _brief_retries()
        self._claims: dict[str, _Claim] = {}
        self._limit = (0, 0)

    def set_limit(self, size: int, arrays: int) -> None:
        """From now on a reply holds at most ``size`` bytes of numbers in ``arrays`` arrays."""
        self._limit = (size, arrays)

    def shelve(self, record: ArrayRecord) -> ArrayRecord:
        """The record whose large arrays lie in files, each once for all the sites that are sent it."""
        return self._shelf.keep(record)

    def get_nodes(self) -> list[NodeInfo]:
        """The connected nodes."""
        with _named_faults():
            return list(super().get_nodes())

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send; an empty id stands for a message that Flower did not take."""
        listed = list(messages)
        for message in listed:
            self._shelf.ask(message.object_id, message, self._limit)
        try:
            with _named_faults():
                identifiers = list(super().push_messages(listed))
        except ObjectPushError:
            identifiers = []
        return [identifier or "" for identifier in identifiers] or [""] * len(listed)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have come in whole. One that cannot be read is a message with the error code of a rejection."""
        wanted = list(message_ids)
        self._claim(wanted)
        messages: list[Message] = []
        for identifier in wanted:
            message = self._fetch(identifier)
            if message is not None:
                messages.append(message)
        return messages

    def arrived(self, message_ids: Collection[str]) -> dict[str, bool]:
        """Those messages whose reply is there, and whether it announces arrays."""
        self._claim(message_ids)
        return {name: not self._claims[name].bare for name in message_ids if name in self._claims}

    def _claim(self, message_ids: Collection[str]) -> None:
        """Take over what has come in. A reply in hand is not lost when its site, or the server, goes away.

        Raises:
            RepliesLost: the server was asked, and its answer did not arrive.
        """
        wanted = frozenset(message_ids) - self._claims.keys()
        if not wanted:
            return
        try:
            with _named_faults():
                response = self._runtime_client.PullMessages(
                    PullAppMessagesRequest(message_ids=sorted(wanted))
                )
        except TransportAway as away:
            if isinstance(away.__cause__, _NOT_ASKED):
                raise
            raise RepliesLost(str(away), wanted) from None
        for header, tree in zip(response.messages_list, response.message_object_trees, strict=False):
            identifier = header.metadata.reply_to_message_id
            if identifier in wanted:
                self._claims[identifier] = _Claim(header=header, bare=_is_bare(tree))

    def _fetch(self, identifier: str) -> Message | None:
        claim = self._claims.get(identifier)
        if claim is None:
            return None
        size, arrays = (0, 0) if claim.bare else self._limit
        inside = min(size, LEAST_BYTES * arrays)
        pull = make_pull_object_fn_protobuf(self._runtime_client.PullObject, self.node, self.run.run_id)
        try:
            with _named_faults():
                sent = read_message(pull, claim.header.metadata.message_id, Budget.of(inside, arrays))
            content = None if sent.has_error() else self._located(identifier, sent.content)
        except ObjectUnavailableError:
            return None
        except ObjectPullError:
            return self._settle(claim, error=Error(ErrorCode.MESSAGE_UNAVAILABLE))
        except RejectedReply as rejected:
            return self._settle(claim, error=Error(_UNREAD[rejected.reason]))
        return self._settle(claim, content=content, error=sent.error if sent.has_error() else None)

    def _located(self, identifier: str, content: RecordDict) -> RecordDict:
        """The content whose numbers lie in files of this order's, where they are no more than was asked for.

        Raises:
            RejectedReply: they are not.
        """
        try:
            named = wire_files.references(content)
            too_much = sum(named.values()) > self._limit[0] or len(named) > self._limit[1]
            files = (
                {} if too_much else {name: self._shelf.came(identifier, name, named[name]) for name in named}
            )
        except WireError:
            raise RejectedReply(gate.UNREADABLE) from None
        if too_much:
            raise RejectedReply(gate.OVERSIZED)
        return wire_files.located(content, files)

    def _settle(
        self, claim: _Claim, *, content: RecordDict | None = None, error: Error | None = None
    ) -> Message:
        """The reply with the header that Flower has checked, whatever the site wrote into its own; its objects are freed."""
        metadata = metadata_from_proto(claim.header.metadata)
        with _named_faults():
            self._runtime_client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=self.node, run_id=self.run.run_id, message_object_id=metadata.message_id
                )
            )
        del self._claims[metadata.reply_to_message_id]
        self._shelf.forget(metadata.reply_to_message_id)
        return make_message(metadata, content=content, error=error)


def _is_bare(tree: ObjectTree) -> bool:
    """Whether no record of the message has parts, as a record of arrays has. The tree is what the site says."""
    return not any(record.children for content in tree.children for record in content.children)


@contextmanager
def _named_faults() -> Iterator[None]:
    try:
        yield
    except RunNotRunningException:
        raise TransportLost("the Flower run was ended") from None
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in _ENDED:
            raise TransportLost(f"Flower's server refuses the run's token (HTTP {status})") from None
        raise TransportAway(f"Flower's server answers HTTP {status}") from error
    except httpx.HTTPError as error:
        raise TransportAway(f"Flower's server does not answer ({type(error).__name__})") from error


def _brief_retries() -> RetryInvoker:
    """Flower's own policy tries for ever, out of reach of a run that is to stop, and interrupts the process on a 401.

    Replies are asked for once: a second answer would not hold again what the first held, and hide that it was lost.
    """
    return RetryInvoker(
        wait_gen_factory=lambda: exponential(base_delay=0.1, max_delay=1),
        recoverable_exceptions=httpx.HTTPError,
        max_tries=None,
        max_time=_PATIENCE_SECONDS,
        should_giveup=_is_final,
    )


def _is_final(error: Exception) -> bool:
    if isinstance(error, httpx.HTTPStatusError) and not error.response.is_server_error:
        return True
    asked = error.request.url.path if isinstance(error, httpx.HTTPError) else ""
    return asked.endswith(_PULL) and not isinstance(error, _NOT_ASKED)
