"""Of whom surveys have told without noise: the difference between two answers is never that of a few patients.

A survey can be asked again after a patient came or went, and whoever subtracts the answers would know that patient. So each set
of patients that was told of is kept here, and another one is told of only where it differs from each of these by enough.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fedmed_client.data.cohort import Case, Cohort
from fedmed_client.site.withdrawals import Withdrawals
from fedmed_common.errors import DataError, PolicyRefusal
from fedmed_common.files import write_atomically

FILE = "surveyed.json"


@dataclass(frozen=True, slots=True)
class Surveyed:
    """The sets that a site's home has told of, as codes of patients that mean nothing elsewhere; they stay there."""

    home: Path

    def of(self, cohort: Cohort, least_patients: int) -> tuple[Case, ...]:
        """The cases that a survey may tell of, of which none are held out: those of all patients, or of a set told of before
        that fewer than ``least_patients`` have joined since. The set is kept, durably. A cohort without keys, as of drawn sites,
        is told whole.

        Raises:
            PolicyRefusal: fewer than ``least_patients`` have gone since, or have come and gone.
            DataError: what was told is not known any more.
        """
        cases = cohort.of("train")
        if not cohort.keys:
            return cases
        withdrawals = Withdrawals(self.home)
        codes = [withdrawals.code_of(key) for key in cohort.keys]
        now = {codes[case.patient] for case in cases}
        told = self._told()
        near = [known for known in told if len(known ^ now) < least_patients]
        kept = max((known for known in near if known <= now), key=len, default=None)
        if near and (
            kept is None or any(known != kept and len(known ^ kept) < least_patients for known in near)
        ):
            raise PolicyRefusal(
                "statistics",
                f"fewer than {least_patients} patients have come and gone since a survey was told",
            )
        if kept is None:
            write_atomically(
                self.home / FILE, json.dumps([sorted(known) for known in [*told, now]]).encode(), mode=0o600
            )
            return cases
        return tuple(case for case in cases if codes[case.patient] in kept)

    def _told(self) -> list[set[str]]:
        try:
            return [set(known) for known in json.loads((self.home / FILE).read_bytes())]
        except FileNotFoundError:
            return []
        except ValueError:
            raise DataError(
                f"{self.home / FILE}: is damaged, and with it what surveys told\n  fix: put it back from a backup"
            ) from None
