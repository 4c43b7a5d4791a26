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
├── BundleRefused           bundle            what a run would have a site carry out is not what the consortium signed
├── ProvisionError          provision         a certificate, key or kit is not what it must be; exit code 2
├── RequestRefused          request-refused   the server refuses a site's request, for one of a few reasons
├── WorkerLost              worker            the process that trains ended or hangs
├── ConnectionProblem       connection        a site cannot work with its coordinator; each kind has its exit code
│   ├── WrongAuthority      wrong-authority   10  the server's certificate is not from this consortium
│   ├── ServerExpired       server-expired    11  the server's certificate has expired
│   ├── OwnExpired          own-expired       12  this site's certificate has expired, or is not valid yet
│   ├── WrongName           wrong-name        13  the server's certificate is for another name
│   ├── NotRegistered       unregistered      14  the server does not know this site's key
│   ├── Revoked             revoked           15  the consortium has revoked this site
│   ├── ClockOff            clock             16  this machine's clock and the server's differ
│   ├── ProxyRefuses        proxy             17  a proxy on the way refuses the connection
│   ├── Unreachable         unreachable       18  nobody answers at the address
│   ├── UnknownHost         unknown-host      19  the address's name cannot be looked up
│   ├── VersionMismatch     version           20  server and site run different versions
│   ├── KeyInUse            in-use            21  another machine is connected with this site's key
│   ├── IdentityRefused     identity          22  the server refuses this site's signature, node or certificate
│   └── NotTheCoordinator   not-coordinator   23  what answers is not a fedmed server
├── TrackingAway            tracking          the tracking store cannot be reached or refuses; the run is not harmed
├── TransportAway           transport-away    the server's own Flower part does not answer just now
│   └── RepliesLost         replies-lost      it may have handed replies over that never arrived
└── Interrupted             interrupted       the run was stopped on request; it can be resumed
    └── TransportLost       transport-lost    the run can no longer reach its sites through Flower; it can be resumed
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
    """The run was stopped on request, within a round too; it can be resumed from its last finished one."""

    code = "interrupted"
    exit_code = 130


class TransportAway(FedmedError):
    """Flower's server does not answer just now; what was asked of it may be asked again."""

    code = "transport-away"


class RepliesLost(TransportAway):
    """Flower's server may have handed over the replies to ``messages``, and none arrived; it hands each over once."""

    code = "replies-lost"

    def __init__(self, problem: str, messages: frozenset[str]) -> None:
        self.messages = messages
        super().__init__(problem)


class TransportLost(Interrupted):
    """A run can no longer reach its sites through Flower: its Flower run was ended, or the server stays away."""

    code = "transport-lost"
    exit_code = 1


class BundleRefused(FedmedError):
    """A run's bundle is not what the consortium signed; ``reason`` is a short phrase of our own."""

    code = "bundle"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the run's bundle is refused: {reason}")


class ProvisionError(FedmedError):
    """A certificate, key or kit is not what it must be."""

    code = "provision"
    exit_code = 2


class RequestRefused(FedmedError):
    """The server refuses a site's request; ``reason`` is one of ``signed_requests.REFUSALS``."""

    code = "request-refused"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the request is refused: {reason}")


class WorkerLost(FedmedError):
    """The process that trains ended, or does not move."""

    code = "worker"


class ConnectionProblem(FedmedError):
    """A site cannot work with its coordinator; the message says what IT can do about it."""

    code = "connection"
    exit_code = 9


class WrongAuthority(ConnectionProblem):
    """The server's certificate is not from this consortium's authority."""

    code = "wrong-authority"
    exit_code = 10


class ServerExpired(ConnectionProblem):
    """The server's certificate has expired."""

    code = "server-expired"
    exit_code = 11


class OwnExpired(ConnectionProblem):
    """This site's certificate has expired, or is not valid yet."""

    code = "own-expired"
    exit_code = 12


class WrongName(ConnectionProblem):
    """The server's certificate is for another name."""

    code = "wrong-name"
    exit_code = 13


class NotRegistered(ConnectionProblem):
    """The server does not know this site's key."""

    code = "unregistered"
    exit_code = 14


class Revoked(ConnectionProblem):
    """The consortium has revoked this site."""

    code = "revoked"
    exit_code = 15


class ClockOff(ConnectionProblem):
    """This machine's clock and the server's differ too much."""

    code = "clock"
    exit_code = 16


class ProxyRefuses(ConnectionProblem):
    """A proxy on the way refuses the connection."""

    code = "proxy"
    exit_code = 17


class Unreachable(ConnectionProblem):
    """Nobody answers at the coordinator's address."""

    code = "unreachable"
    exit_code = 18


class UnknownHost(ConnectionProblem):
    """The name in the coordinator's address cannot be looked up."""

    code = "unknown-host"
    exit_code = 19


class VersionMismatch(ConnectionProblem):
    """Server and site run versions that do not work together."""

    code = "version"
    exit_code = 20


class KeyInUse(ConnectionProblem):
    """Another machine is connected with this site's key."""

    code = "in-use"
    exit_code = 21


class IdentityRefused(ConnectionProblem):
    """The server refuses this site's signature, node id or certificate."""

    code = "identity"
    exit_code = 22


class NotTheCoordinator(ConnectionProblem):
    """What answers at the address is not a fedmed server."""

    code = "not-coordinator"
    exit_code = 23
