"""A network of its own for each hospital: one cable to the server, no route to anywhere else. Needs Linux, root and ``ip``."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from fedmed_common.errors import FedmedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cable:
    """A hospital's end: ``prefix`` runs a command in its network; ``server``: the address of the server's end."""

    prefix: tuple[str, ...]
    server: str


class Namespaces:
    """A network namespace for each hospital, for as long as the block lasts.

    The addresses are out of 198.18.0.0/15, which is set aside for tests of networks.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if len(names) > 64:
            raise ValueError("64 hospitals at most")
        mark, third = secrets.token_hex(3), secrets.randbelow(512)
        subnet = f"198.{18 + third // 256}.{third % 256}"
        self._spaces = [f"fedmed-{mark}-{index}" for index in range(len(names))]
        self._ends = [(f"fm{mark}{index}a", f"fm{mark}{index}b") for index in range(len(names))]
        self._addresses = [
            (f"{subnet}.{4 * index + 1}", f"{subnet}.{4 * index + 2}") for index in range(len(names))
        ]
        self.cables = {
            name: Cable(prefix=("ip", "netns", "exec", space), server=here)
            for name, space, (here, _) in zip(names, self._spaces, self._addresses, strict=True)
        }

    @staticmethod
    def permitted() -> bool:
        """Whether this machine lets networks be made."""
        if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
            return False
        try:
            with Namespaces(["test"]):
                return True
        except FedmedError:
            return False

    def __enter__(self) -> Self:
        try:
            for space, ends, addresses in zip(self._spaces, self._ends, self._addresses, strict=True):
                self._lay(space, ends, addresses)
        except FedmedError:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _lay(self, space: str, ends: tuple[str, str], addresses: tuple[str, str]) -> None:
        (here, there), (address, other) = ends, addresses
        _ip("netns", "add", space)
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", space)
        _ip("addr", "add", f"{address}/30", "dev", here)
        _ip("link", "set", here, "up")
        _ip("-n", space, "addr", "add", f"{other}/30", "dev", there)
        _ip("-n", space, "link", "set", there, "up")
        _ip("-n", space, "link", "set", "lo", "up")

    def _remove(self) -> None:
        for space, (here, _) in zip(self._spaces, self._ends, strict=True):
            for command in (("link", "del", here), ("netns", "del", space)):
                subprocess.run(["ip", *command], capture_output=True, check=False)  # noqa: S603, S607


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode:
        raise FedmedError(f"'ip {' '.join(arguments)}' failed: {done.stderr.strip()}")
