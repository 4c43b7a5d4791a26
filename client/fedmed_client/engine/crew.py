"""The processes that share a site's training: started once, kept waiting between orders, and ended together.

Each has a socket to this process as its standard input. On it come assignments, and go steps, results and errors
(:mod:`fedmed_client.engine.assignment`). It is also their tie: where it closes, a process that waits ends by itself, and on Linux
the kernel ends them all with this one. They find each other by a file, and speak over the loopback address.
"""

from __future__ import annotations

import atexit
import selectors
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from subprocess import Popen, TimeoutExpired

from fedmed_client.engine.assignment import Assignment, Said, Trained
from fedmed_common import children
from fedmed_common.errors import WorkerLost

COMMAND = (sys.executable, "-m", "fedmed_client.engine.member")
_GRACE_SECONDS = 5.0
_AT_ONCE = 2**16


class Member:
    """One of the processes. ``command``: reads assignments from its standard input, and answers there."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """A group of its own gets no Ctrl-C of this terminal: this process says when it ends."""
        self._line, theirs = socket.socketpair()
        with theirs:
            self.process: Popen[bytes] = children.start(
                command, environment=environment, own_group=True, stdin=theirs.fileno()
            )
        self._heard = b""
        self.is_gone = False

    def fileno(self) -> int:
        """Of the socket, to wait for what it says."""
        return self._line.fileno()

    def tell(self, text: str) -> None:
        """Hand it a line; one who is gone hears nothing."""
        try:
            self._line.sendall(text.encode() + b"\n")
        except OSError:
            self.is_gone = True

    def hear(self) -> list[Said] | None:
        """What it says next, None where there is nothing to wait for; afterwards ``is_gone`` tells whether it can say more."""
        try:
            more = self._line.recv(_AT_ONCE)
        except BlockingIOError:
            return None
        except OSError:
            more = b""
        self.is_gone = not more
        *lines, self._heard = (self._heard + more).split(b"\n")
        return [Said.model_validate_json(line) for line in lines]

    def last_words(self) -> list[Said]:
        """All that it has said and nobody has heard."""
        self._line.setblocking(False)
        words: list[Said] = []
        while not self.is_gone and (more := self.hear()) is not None:
            words += more
        return words

    def code(self) -> int | None:
        """How it ended, if it did; one who is gone is about to."""
        try:
            return self.process.wait(_GRACE_SECONDS if self.is_gone else 0)
        except TimeoutExpired:
            return None

    def close(self) -> None:
        """End it, if it has not ended."""
        self._line.close()
        children.stop(self.process, _GRACE_SECONDS)


class Crew:
    """Processes that train together. ``environments``: of each, who it is."""

    def __init__(self, environments: Sequence[Mapping[str, str]]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fedmed-crew-"))
        self.members: list[Member] = []
        try:
            for environment in environments:
                self.members.append(Member([*COMMAND, str(self._folder)], environment))
        except BaseException:
            self.end()
            raise

    @property
    def stands(self) -> bool:
        """Whether all are there."""
        return bool(self.members) and all(member.process.poll() is None for member in self.members)

    def carry_out(self, assignment: Assignment, on_step: Callable[[int], None]) -> Trained:
        """What the first one has when all are done. ``on_step`` hears of its steps.

        Raises:
            WorkerLost: one ended before its time. This, and whatever ``on_step`` raises, ends them all.
        """
        try:
            for member in self.members:
                member.tell(assignment.model_dump_json())
            return self._listen(on_step)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End them all."""
        for member in self.members:
            if member.process.poll() is None:
                member.process.terminate()
        for member in self.members:
            member.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _listen(self, on_step: Callable[[int], None]) -> Trained:
        done: dict[int, Trained] = {}
        with selectors.DefaultSelector() as selector:
            for rank, member in enumerate(self.members):
                selector.register(member, selectors.EVENT_READ, rank)
            while len(done) < len(self.members):
                for key, _ in selector.select():
                    for said in self._heard_of(key.data):
                        if said.trained is not None:
                            done[key.data] = said.trained
                        else:
                            on_step(said.step)
        return done[0]

    def _heard_of(self, rank: int) -> Iterator[Said]:
        for said in self.members[rank].hear() or ():
            if said.error:
                raise self._lost({rank: said})
            yield said
        if self.members[rank].is_gone:
            raise self._lost({})

    def _lost(self, errors: dict[int, Said]) -> WorkerLost:
        """A process that was killed is the cause when another has failed for want of it; else the one that failed first is."""
        count = len(self.members)
        for rank, member in enumerate(self.members):
            for said in member.last_words():
                if said.error:
                    errors[rank] = said
        codes = [member.code() for member in self.members]
        for rank, code in enumerate(codes):
            if code is not None and code < 0:
                name = signal.Signals(-code).name
                return WorkerLost(
                    f"process {rank + 1} of {count} that shared the training was ended by {name}"
                )
        first = min(errors, key=lambda rank: errors[rank].at, default=None)
        if first is not None:
            return WorkerLost(
                f"process {first + 1} of {count} that shared the training failed: {errors[first].error}"
            )
        rank = next(rank for rank, member in enumerate(self.members) if member.is_gone)
        return WorkerLost(
            f"process {rank + 1} of {count} that shared the training failed: it left no word (code {codes[rank]})"
        )


class Crews:
    """The one crew of this process, ``kept`` between orders."""

    def __init__(self) -> None:
        self.kept: Crew | None = None
        self._gpu = False

    def get(self, environments: Sequence[Mapping[str, str]], *, gpu: bool) -> Crew:
        """A crew of so many that stands: the one that waits, or a new one."""
        crew = self.kept
        if crew is None or not crew.stands or (len(crew.members), self._gpu) != (len(environments), gpu):
            self.end()
            crew = Crew(environments)
            self.kept, self._gpu = crew, gpu
        return crew

    def end(self) -> None:
        """End it."""
        if self.kept is not None:
            self.kept.end()
            self.kept = None


CREWS = Crews()
atexit.register(CREWS.end)
