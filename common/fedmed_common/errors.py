"""One exception tree. Every error has a stable code; only the code may leave a site.

FedmedError                 internal
├── ConfigError             config            a file or field the user wrote is wrong; exit code 2
├── DataError               data              a site's data cannot be used as they are
│   ├── UnreadableFile      unreadable-file   one file was skipped, with its reason
│   ├── DecoderMissing      decoder-missing   a transfer syntax needs an optional package
│   ├── GeometryError       geometry          slices or labels do not fit together in space
│   └── LabelError          labels            a label name is unmapped or ambiguous
├── PolicyRefusal           policy            the site's own rules forbid the order
├── WireError               wire              an order or reply is not what the wire declares
│   └── RejectedReply       rejected-reply    the gate refused a site's reply
├── QuorumError             quorum            too few sites answered a round
├── CheckpointError         checkpoint        a run folder cannot be resumed as it is
├── TrackingAway            tracking          the tracking store cannot be reached or refuses; the run is not harmed
└── Interrupted             interrupted       the run was stopped on request; it can be resumed
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class FedmedError(Exception):
    """Base of all errors that fedmed raises on purpose.

    The message is for the person at this machine. It may name files and fields, so it never crosses the wire: there, only
    ``code`` does.
    """

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1


class ConfigError(FedmedError):
    """A file that the user wrote is wrong: names the file, the field and the fix."""

    code = "config"
    exit_code = 2

    def __init__(
        self, problem: str, *, file: Path | str | None = None, field: str | None = None, fix: str = ""
    ) -> None:
        self.problem, self.file, self.field, self.fix = problem, file, field, fix
        place = ": ".join(str(part) for part in (file, field) if part)
        super().__init__(f"{place}: {problem}" if place else problem)

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\n  fix: {self.fix}" if self.fix else text


class DataError(FedmedError):
    """A site's data cannot be used as they are."""

    code = "data"


class UnreadableFile(DataError):
    """One file cannot be read; a scan skips it and lists it with this reason."""

    code = "unreadable-file"


class DecoderMissing(DataError):
    """The pixels are compressed in a way that needs a package which is not installed."""

    code = "decoder-missing"


class GeometryError(DataError):
    """Slices, or an image and its labels, do not fit together in space."""

    code = "geometry"


class LabelError(DataError):
    """A label name is unmapped, or maps to more than one class."""

    code = "labels"


class PolicyRefusal(FedmedError):
    """The site's own policy forbids what an order asks for; ``rule`` names the rule, and may leave the site."""

    code = "policy"

    def __init__(self, rule: str, detail: str) -> None:
        self.rule = rule
        super().__init__(f"{rule}: {detail}")


class WireError(FedmedError):
    """An order or a reply is not what the wire declares."""

    code = "wire"


class RejectedReply(WireError):
    """The gate refused a reply; ``reason`` is one short phrase of our own, never text from the reply."""

    code = "rejected-reply"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class QuorumError(FedmedError):
    """Too few sites answered a round, also after its retries."""

    code = "quorum"


class CheckpointError(FedmedError):
    """A run folder cannot be resumed as it is."""

    code = "checkpoint"
    exit_code = 2


class TrackingAway(FedmedError):
    """The tracking store cannot be reached, or refuses what it is sent. The run is not harmed: it can be caught up later."""

    code = "tracking"


class Interrupted(FedmedError):
    """The run was stopped on request at a round's boundary; it can be resumed."""

    code = "interrupted"
    exit_code = 130
