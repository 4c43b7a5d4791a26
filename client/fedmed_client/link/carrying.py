"""An order with the worker, in a thread of its own."""

from __future__ import annotations

import threading
import time

from flwr.app import Message

from fedmed_client.link.flower import RunOver
from fedmed_client.site.home import SiteFolder
from fedmed_client.work.channel import WorkerChannel
from fedmed_common.errors import FedmedError, WorkerLost


class Carrying:
    """A message with the worker. Nothing waits for the thread: a link that ends leaves it behind."""

    def __init__(self, home: SiteFolder, message: Message, seconds: float) -> None:
        self.done, self.step = threading.Event(), 0
        self._seconds = seconds
        self._channel = WorkerChannel(home.path, home.site().limits)
        self._message, self._result = message, list[Message | Exception]()
        threading.Thread(target=self._carry, name="carry", daemon=True).start()

    def cancel(self) -> None:
        """Ask the worker to leave the message at its next step; it still answers."""
        self._channel.cancel()

    def reply(self) -> Message:
        """The worker's, once it is done.

        Raises:
            WorkerLost: the worker ended, or answered with words of Flower's, which must not leave.
        """
        result = self._result[0]
        if isinstance(result, Exception):
            raise result
        if not result.has_content():
            raise WorkerLost("the worker answered with an error of Flower's")
        return result

    def _carry(self) -> None:
        try:
            carry = self._channel.carry
            self._result.append(carry(self._message, on_step=self._on_step, deadline_seconds=self._seconds))
        except Exception as error:
            self._result.append(error if isinstance(error, FedmedError) else WorkerLost(type(error).__name__))
        finally:
            self.done.set()

    def _on_step(self, step: int) -> None:
        self.step = step


def seconds_left(message: Message) -> float:
    """How long an answer is waited for.

    Raises:
        RunOver: not any more.
    """
    left = message.metadata.created_at + message.metadata.ttl - time.time()
    if left <= 0:
        raise RunOver("the order has expired")
    return left
