"""What the server knows about each site's connection, kept in one file for the coordinator's commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fedmed_common.files import write_atomically

State = Literal["connected", "away", "refused", "never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the server last refused the site, one of ``signed_requests.REFUSALS``, and when."""

    code: str
    time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteState:
    """One site. Times are in ISO form, UTC; ``last_seen`` is empty for a site that was never connected.

    ``clock_skew_seconds`` is the site's clock minus the server's, also of a request that was refused for it. ``instance``
    and ``boot`` are of the link that was admitted last, see ``signed_requests.Stamp``. ``signed_seconds`` is the latest time,
    by the site's clock, at which a request was signed that was admitted.
    """

    state: State = "never"
    version: str = ""
    instance: str = ""
    boot: str = ""
    last_seen: str = ""
    clock_skew_seconds: float = 0.0
    signed_seconds: float = 0.0
    refusal: Refusal | None = None
    certificate_expires: str = ""


def load_site_states(path: Path) -> dict[str, SiteState]:
    """The states by site; none where the server has not written them yet."""
    try:
        document: Mapping[str, Mapping[str, Any]] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return {site: _state(values) for site, values in document.items()}


def save_site_states(path: Path, states: Mapping[str, SiteState]) -> None:
    """Write the states; a reader sees the old ones or the new ones."""
    document = {site: _values(state) for site, state in sorted(states.items())}
    write_atomically(path, (json.dumps(document) + "\n").encode())


def moment(seconds: float) -> str:
    """A time of this machine's clock, as the file has it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _values(state: SiteState | Refusal) -> dict[str, Any]:
    """As ``asdict`` gives them, which takes ten times as long: the file is written each second, with every site."""
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    return {name: _values(value) if isinstance(value, Refusal) else value for name, value in values.items()}


def _state(values: Mapping[str, Any]) -> SiteState:
    known = {field.name: values[field.name] for field in fields(SiteState) if field.name in values}
    refusal = known.get("refusal")
    return SiteState(**known | {"refusal": Refusal(**refusal) if refusal else None})
