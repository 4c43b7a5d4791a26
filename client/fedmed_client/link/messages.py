"""A message as Flower's server announces it, and put together from the objects that are fetched for it."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass

from flwr.app import Array, Message
from flwr.app.message.message import make_message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedmed_common.errors import WireError

LARGEST_MESSAGE_BYTES = 2**27
"""Of the arrays in a message, and of all that is fetched for it. One larger fails alone, and does not take the link's memory."""

MOST_OBJECTS = 50_000
"""In a message: a few for each array."""

_TOO_LARGE = "the message is larger than an order may be"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A message that waits at the server; its content is fetched object by object."""

    message: Message
    tree: ObjectTree

    @property
    def run(self) -> int:
        """Flower's number of the run."""
        return self.message.metadata.run_id

    @property
    def objects(self) -> list[str]:
        """What to fetch, each once.

        Raises:
            WireError: it is more than an order consists of.
        """
        names = dict.fromkeys(tree.object_id for tree in iterate_object_tree(self.tree))
        if len(names) > MOST_OBJECTS:
            raise WireError("the message has more parts than an order may have")
        return list(names)


class Fetched:
    """The objects of a message as they come, from several threads, while they are no more than an order's."""

    def __init__(self) -> None:
        self._turn, self._size = threading.Lock(), 0

    def weigh(self, content: bytes) -> bytes:
        """The object, counted.

        Raises:
            WireError: all that came so far is too much.
        """
        with self._turn:
            self._size += len(content)
            if self._size > LARGEST_MESSAGE_BYTES:
                raise WireError(_TOO_LARGE)
        return content


def inflate(announced: Announced, contents: dict[str, bytes]) -> Message:
    """The announced message with its content; ``contents`` is emptied.

    Raises:
        WireError: the objects are not a message's.
    """
    header = announced.message.metadata
    try:
        _check_size(contents)
        whole = inflate_object_from_contents(header.message_id, contents)
        if not isinstance(whole, Message) or not whole.has_content():
            raise WireError("the message has no content")
        return make_message(metadata=header, content=whole.content)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise WireError(f"the message cannot be read ({type(error).__name__})") from None


def _check_size(contents: dict[str, bytes]) -> None:
    """Raises :class:`WireError` where arrays that name their chunks many times would take more memory than an order may."""
    size = 0
    for content in contents.values():
        kind, parts, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__qualname__:
            named = json.loads(get_object_body(content, Array))["arraychunk_ids"]
            size += sum(len(contents[parts[index]]) for index in named)
    if size > LARGEST_MESSAGE_BYTES:
        raise WireError(_TOO_LARGE)
