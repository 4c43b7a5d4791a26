"""Flower's server as a run's process sees it: its Runtime API over HTTP without sockets, with scripted sites behind it.

A site carries its order out when the reply is asked for. Orders and replies go through the object store as Flower's own
code takes them apart; ``tamper`` may put other objects in a reply's place. Large arrays lie on a shelf in files, and ``beside``
may put others in the place of a reply's.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from flwr.app import Array, Context, Message, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    GetNodesResponse,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
)
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import Message as Proto
from scripted import Sites

from fedmed_common import wire_arrays, wire_files
from fedmed_common.wire_files import Filed
from fedmed_server.deployment.grid import GuardedGrid
from fedmed_server.deployment.shelf import Shelf, model_file, order_folder


@dataclass
class Parcel:
    """A reply as it lies in the object store: its objects by id, the first object's id, and the tree that the site announced."""

    objects: dict[str, bytes]
    root: str
    tree: ObjectTree


Tamper = Callable[[str, Parcel], Parcel]


@dataclass
class SuperLink:
    """``trouble`` gives, request by request, what goes wrong: an exception, an HTTP status, or None."""

    sites: Sites
    tamper: Tamper = lambda _site, parcel: parcel
    trouble: Callable[[str], Exception | int | None] = lambda _path: None
    activated: dict[int, str] = field(default_factory=dict)
    store: dict[str, bytes] = field(default_factory=dict)
    orders: dict[str, tuple[int, ObjectTree]] = field(default_factory=dict)
    confirmed: list[str] = field(default_factory=list)
    held_back: Callable[[str], bool] = lambda _site: False
    beside: Callable[[str, Path], None] = lambda _site, _folder: None
    is_beside: Callable[[str], bool] = lambda _site: True
    root: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="fedmed-shelf-")))
    shelf: Shelf | None = None

    def __post_init__(self) -> None:
        weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)

    def grid(self) -> GuardedGrid:
        """A run's grid on this server; the one before it, if there was one, is gone as with its process."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        if self.shelf is not None:
            self.shelf.close()
        self.shelf = Shelf(self.root, 1)
        weakref.finalize(self, self.shelf.close)
        grid = GuardedGrid("superlink", self.shelf, token="x", insecure=True)  # noqa: S106
        grid.set_run(Run.create_empty(1))
        client = grid._runtime_client
        client._client.close()
        client._client = httpx.Client(transport=httpx.MockTransport(self._respond))
        return grid

    def _respond(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.rpartition("/")[2]
        trouble = self.trouble(path)
        if isinstance(trouble, Exception):
            raise trouble
        if trouble is not None:
            return httpx.Response(trouble, request=request)
        handler: Callable[[bytes], Proto] = getattr(self, "_" + path.replace("-", "_"))
        return httpx.Response(200, content=handler(request.content).SerializeToString(), request=request)

    def _get_nodes(self, _content: bytes) -> GetNodesResponse:
        return GetNodesResponse(
            nodes=[
                NodeInfo(
                    node_id=100 + index, name=name, last_activated_at=self.activated.get(100 + index, "1")
                )
                for index, name in enumerate(self.sites.patients)
            ]
        )

    def _push_messages(self, content: bytes) -> PushAppMessagesResponse:
        request = PushAppMessagesRequest.FromString(content)
        wanted: list[str] = []
        for header, tree in zip(request.messages_list, request.message_object_trees, strict=True):
            self.orders[header.metadata.message_id] = (header.metadata.dst_node_id, tree)
            wanted += [name for name in _names(tree) if name not in self.store]
        identifiers = [header.metadata.message_id for header in request.messages_list]
        return PushAppMessagesResponse(message_ids=identifiers, objects_to_push=wanted, session_id="session")

    def _push_object(self, content: bytes) -> PushObjectResponse:
        request = PushObjectRequest.FromString(content)
        self.store[request.object_id] = request.object_content
        return PushObjectResponse(stored=True)

    def _pull_messages(self, content: bytes) -> PullAppMessagesResponse:
        response = PullAppMessagesResponse()
        for identifier in PullAppMessagesRequest.FromString(content).message_ids:
            if identifier in self.orders and not self.held_back(self.sites.name(self.orders[identifier][0])):
                node, _ = self.orders.pop(identifier)
                reply, parcel = self._carry_out(identifier, node)
                self.store |= parcel.objects
                header = message_to_proto(remove_content_from_message(reply))
                header.metadata.message_id = parcel.root
                response.messages_list.append(header)
                response.message_object_trees.append(parcel.tree)
        return response

    def _pull_object(self, content: bytes) -> PullObjectResponse:
        request = PullObjectRequest.FromString(content)
        if request.object_id not in self.store:
            return PullObjectResponse(object_found=False, object_available=False)
        data = self.store[request.object_id]
        return PullObjectResponse(object_found=True, object_available=data != b"", object_content=data)

    def _confirm_message_received(self, content: bytes) -> ConfirmMessageReceivedResponse:
        self.confirmed.append(ConfirmMessageReceivedRequest.FromString(content).message_object_id)
        return ConfirmMessageReceivedResponse()

    def _carry_out(self, identifier: str, node: int) -> tuple[Message, Parcel]:
        order = inflate_object_from_contents(identifier, dict(self.store), keep_object_contents=True)
        assert isinstance(order, Message)
        asked = wire_files.references(order.content)
        files = {name: Filed.open(model_file(self.root, 1, name), name, size) for name, size in asked.items()}
        order = make_message(metadata=order.metadata, content=wire_files.located(order.content, files))
        order.metadata.__dict__["_message_id"] = identifier
        context = Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
        TaskIdentity.node_id = node
        try:
            reply = self.sites.app()(order, context)
        finally:
            TaskIdentity.node_id = 1
        folder = order_folder(self.root, 1, identifier)
        if reply.has_content() and self.is_beside(self.sites.name(node)):
            reply = make_message(metadata=reply.metadata, content=sent_beside(reply.content, folder))
        self.beside(self.sites.name(node), folder)
        return reply, self.tamper(self.sites.name(node), take_apart(reply))


def sent_beside(content: RecordDict, folder: Path) -> RecordDict:
    """The content as a site sends it, after its large arrays."""

    def refer(array: Array) -> Array:
        if len(array.data) < wire_files.LEAST_BYTES:
            return array
        row = wire_arrays.numbers(array)
        digest = wire_files.digest_of([row])
        (folder / f"{digest}-{row.nbytes}").write_bytes(row.data)
        return Array(dtype=array.dtype, shape=array.shape, stype=wire_files.FILED, data=digest.encode())

    return wire_files.with_arrays(content, refer)


def take_apart(message: Message) -> Parcel:
    """A message as objects, as a site's Flower makes them."""
    objects = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    return Parcel(objects=objects, root=message.object_id, tree=get_object_tree(message))


def _names(tree: ObjectTree) -> Iterator[str]:
    for child in tree.children:
        yield from _names(child)
    yield tree.object_id
