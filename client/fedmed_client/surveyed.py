"""Of whom surveys have told without noise, and what: the difference between two answers is never that of a few patients.

A survey can be asked again after a patient came or went, or about other classes, and whoever subtracts the answers would know
that patient. So what was told is kept here: the question, and of whom. The same question about almost the same patients is
answered as before, to the bit; another question about almost the same patients is refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedmed_client.data.cohort import Case, Cohort, by_patient
from fedmed_client.site.withdrawals import SURVEYED, Withdrawals
from fedmed_client.workbench import COHORTS, SiteHome, experiment_of
from fedmed_common import wire
from fedmed_common.config import Experiment
from fedmed_common.errors import DataError, PolicyRefusal
from fedmed_common.fields import Model
from fedmed_common.files import write_atomically
from fedmed_strategies.presets import recipe_of

_UNASKED = {"patch", "augmentation", "foreground_share", "modality_dropout"}


class Told(Model):
    """One answer. ``asked``: a digest of the question; ``patients``: codes of patients that mean nothing elsewhere; ``contents``:
    codes of these patients with what their images and labels were."""

    asked: str
    patients: tuple[str, ...]
    contents: tuple[str, ...]


_ALL_TOLD = TypeAdapter(tuple[Told, ...])


def surveyed(home: SiteHome, experiment: Experiment, cohort: Cohort) -> tuple[Case, ...]:
    """The cases that a survey may tell of, of which none are held out: all, where it asks with noise alone.

    Raises:
        PolicyRefusal: a few have gone or changed since, or almost the same patients were told of in answer to another question.
        DataError: what was told is not known any more.
    """
    cases = cohort.of("train")
    told_plainly = any(statistic.epsilon is None for statistic in recipe_of(experiment).gathered())
    if not cohort.keys or not told_plainly or home.site.policy.least_patients == 1:
        return cases
    return Surveyed(home.folder).of(cohort, question(home, experiment), home.site.policy.least_patients)


def surveyed_patients(home: SiteHome, order: wire.Order) -> int:
    """How many patients a survey tells of here."""
    cohort, _ = COHORTS.get(home, order.experiment)
    return len(by_patient(surveyed(home, experiment_of(order.experiment), cohort)))


def question(home: SiteHome, experiment: Experiment) -> str:
    """A digest of all that an answer depends on but the patients themselves."""
    asked = {
        "data": experiment.data.model_dump(mode="json", exclude=_UNASKED),
        "classes": experiment.task.classes,
        "site": home.site.model_dump(mode="json", include={"data", "labels", "ignore_labels"}),
        "least_patients": home.site.policy.least_patients,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What a site's home has told."""

    home: Path

    def of(self, cohort: Cohort, asked: str, least_patients: int) -> tuple[Case, ...]:
        """The cases to tell of in answer to a question: all, or those told of before, where fewer than ``least_patients`` have
        come since. What is told is kept, durably.

        Raises:
            PolicyRefusal, DataError: as :func:`surveyed`.
        """
        cases, withdrawals = cohort.of("train"), Withdrawals(self.home)
        patients = {number: withdrawals.code_of(cohort.keys[number]) for number in by_patient(cases)}
        contents = {
            number: withdrawals.code_of(cohort.keys[number] + _content(of_patient))
            for number, of_patient in by_patient(cases).items()
        }
        told, now = self._told(), {*contents.values()}
        near = [one for one in told if len({*one.patients} ^ {*patients.values()}) < least_patients]
        again = [one for one in near if one.asked == asked and {*one.contents} <= now]
        if again:
            kept = {*max(again, key=lambda one: len(one.contents)).contents}
            return tuple(case for case in cases if contents[case.patient] in kept)
        if any(one.asked == asked for one in near):
            raise self._refusal(
                f"fewer than {least_patients} patients have gone, or have changed, since it was told"
            )
        if near:
            raise self._refusal("almost the same patients were told of in answer to another question")
        new = Told(asked=asked, patients=tuple(sorted(patients.values())), contents=tuple(sorted(now)))
        write_atomically(self.home / SURVEYED, _ALL_TOLD.dump_json((*told, new)), mode=0o600)
        return cases

    def _refusal(self, why: str) -> PolicyRefusal:
        return PolicyRefusal(
            "statistics",
            f"{why}, and the difference would tell of them; a survey with noise may be asked, and who has the say here can "
            f"permit this one by removing {self.home / SURVEYED}",
        )

    def _told(self) -> tuple[Told, ...]:
        try:
            return _ALL_TOLD.validate_json((self.home / SURVEYED).read_bytes(), strict=True)
        except FileNotFoundError:
            return ()
        except ValidationError:
            raise DataError(
                f"{self.home / SURVEYED}: is damaged, and with it what surveys told\n  fix: put it back from a backup"
            ) from None


def _content(cases: list[Case]) -> str:
    """Of a patient's images and labels as they are prepared, whatever their order."""
    return " ".join(sorted(case.digest for case in cases))
