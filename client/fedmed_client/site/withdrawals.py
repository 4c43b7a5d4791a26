"""Patients who withdrew: left out of every cohort from the next order on, and which runs had trained on them before.

``withdrawn.json`` and ``uses/`` hold no identifiers, but codes of them (HMAC-SHA-256) under ``withdrawn.key``, which stays here
with them: who has the key can try identifiers, and nobody else.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from fedmed_client.data.text import normalise, normalise_patient, without_issuer
from fedmed_common.errors import DataError
from fedmed_common.files import name_of, write_atomically

FILE, KEY, USES = "withdrawn.json", "withdrawn.key", "uses"
SURVEYED = "surveyed.json"
"""Of whom surveys have told, under the same key; see :mod:`fedmed_client.surveyed`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A run that trained on a patient: its name, the experiment's, and since when."""

    run: str
    experiment: str
    first: str


@dataclass(frozen=True)
class Withdrawals:
    """Those of a site's home. Reading touches nothing."""

    home: Path

    def add(self, identifier: str, issuer: str | None = None) -> tuple[Use, ...]:
        """Note that a patient withdrew, durably; the runs that had trained on the patient.

        ``identifier``: PatientID, or what stands for it in file names; ``issuer``: IssuerOfPatientID, None: whatever it is. What
        is prepared of the patient's images is deleted here; the images themselves are the hospital's.
        """
        self._make_key()
        patient = normalise_patient(identifier, issuer or "")
        codes = {self._code(patient)} if issuer is not None else {self._code(_any_issuer(patient))}
        known = self._known()
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        known |= {code: moment for code in codes if code not in known}
        write_atomically(self.home / FILE, json.dumps(known, indent=1).encode(), mode=0o600)
        return tuple(self._uses(codes))

    def holds(self, patient: str) -> bool:
        """Whether the patient of this key withdrew."""
        return bool(self._withdrawn) and not self._withdrawn.isdisjoint(self._codes(patient))

    @property
    def digest(self) -> str:
        """Of all of them: another one after each that is added."""
        file = self.home / FILE
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""

    @property
    def affected_runs(self) -> int:
        """How many runs had trained on patients who withdrew afterwards."""
        return sum(1 for _ in self._uses(self._withdrawn)) if self._withdrawn else 0

    def note_use(self, run: str, experiment: str, patients: Iterable[str]) -> None:
        """Note, durably, that a run is about to train on the patients of these keys."""
        file = self.home / USES / f"{name_of(run)}.json"
        self._make_key()
        codes = {code for patient in patients for code in self._codes(patient)}
        before = json.loads(file.read_bytes()) if file.exists() else None
        if before is not None and codes <= set(before["patients"]):
            return
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        first = before["first"] if before else datetime.now(UTC).isoformat(timespec="seconds")
        document = {
            "run": run,
            "experiment": experiment,
            "first": first,
            "patients": sorted(codes | set(before["patients"] if before else ())),
        }
        write_atomically(file, json.dumps(document).encode(), mode=0o600)

    def code_of(self, patient: str) -> str:
        """What stands for the patient of this key in files of the site's home."""
        self._make_key()
        return self._code(patient)

    def _uses(self, codes: Iterable[str]) -> Iterator[Use]:
        wanted = set(codes)
        for file in sorted((self.home / USES).glob("*.json")):
            document = json.loads(file.read_bytes())
            if not wanted.isdisjoint(document["patients"]):
                yield Use(run=document["run"], experiment=document["experiment"], first=document["first"])

    @cached_property
    def _withdrawn(self) -> frozenset[str]:
        return frozenset(self._known())

    def _known(self) -> dict[str, str]:
        file = self.home / FILE
        if not file.exists():
            return {}
        try:
            known: dict[str, str] = json.loads(file.read_bytes())
        except ValueError:
            raise DataError(
                f"{file}: is damaged, and with it who withdrew\n  fix: put it back from a backup"
            ) from None
        return known

    def _codes(self, patient: str) -> tuple[str, str]:
        return self._code(patient), self._code(_any_issuer(patient))

    def _code(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    @cached_property
    def _key(self) -> bytes:
        try:
            return (self.home / KEY).read_bytes()
        except FileNotFoundError:
            raise DataError(
                f"{self.home / KEY}: is gone, and without it nobody knows who withdrew\n  fix: put it back from a backup"
            ) from None

    def _make_key(self) -> None:
        """Make the key where there is none; once somebody withdrew, or a survey was told, it is not made again."""
        used = (self.home / FILE).exists() or (self.home / SURVEYED).exists()
        if not (self.home / KEY).exists() and not used:
            self.home.mkdir(parents=True, exist_ok=True)
            write_atomically(self.home / KEY, secrets.token_bytes(32), mode=0o600)


def _any_issuer(patient: str) -> str:
    return "any issuer: " + normalise(without_issuer(patient).rstrip("|"))
