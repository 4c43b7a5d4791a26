"""Who is in the federation: each site's scanner, label format and names, and which patient shows which lesion.

The long tail is drawn over patients: lesion class k of K is shown by ``head * imbalance ** (-k / (K - 1))`` patients, spread over
the sites by Dirichlet weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmed_simulations.phantom.anatomy import CLASS_OF, STRUCTURES
from fedmed_simulations.phantom.scanner import Scanner, scanner_of
from fedmed_simulations.phantom.settings import LESIONS, ORGANS, PhantomSettings

LabelFormat = Literal["seg-binary", "rtstruct", "seg-labelmap", "nifti"]
LABEL_FORMATS: tuple[LabelFormat, ...] = ("seg-binary", "rtstruct", "seg-labelmap", "nifti")
"""The formats of the first sites; further sites pair them with other scanners."""

_FIRST_HELD_OUT = 10_000
"""Patients from this index on are in no federation but one that is held out."""

SITE_NAMES = ("north", "east", "south", "west")

_PLAIN = ("Liver", "Spleen", "Right kidney", "Left kidney", "Pancreas", "Aorta", "Vertebral column",
          "Liver lesion", "Renal cyst", "Splenic lesion", "Bone metastasis", "Pancreatic cyst")  # fmt: skip
_UPPER = ("LIVER", "SPLEEN", "KIDNEY_R", "KIDNEY_L", "PANCREAS", "A_AORTA", "SPINE",
          "GTV_LIVER", "CYST_KIDNEY", "GTV_SPLEEN", "GTV_BONE", "CYST_PANCREAS")  # fmt: skip
_GERMAN = ("Leber", "Milz", "Nieren", "Nieren", "Bauchspeicheldrüse", "Aorta", "Wirbelsäule",
           "Leberherd", "Nierenzyste", "Milzherd", "Knochenherd", "Pankreaszyste")  # fmt: skip
_NUMBERS = tuple(str(number) for number in range(1, len(STRUCTURES) + 1))
NAMES: dict[LabelFormat, Mapping[str, str]] = {
    "seg-binary": dict(zip(STRUCTURES, _PLAIN, strict=True)),
    "rtstruct": dict(zip(STRUCTURES, _UPPER, strict=True)),
    "seg-labelmap": dict(zip(STRUCTURES, _GERMAN, strict=True)),
    "nifti": dict(zip(STRUCTURES, _NUMBERS, strict=True)),
}
"""What a structure is called; where two share a name, they are one segment. NIfTI has numbers for names."""

BODY_NAME = "EXTERNAL"
"""The region around the whole patient that RTSTRUCT sites add, as treatment planning does; it stands for no class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientPlan:
    """One patient: the index within the site, an id, and the lesion classes that the patient shows."""

    index: int
    id: str
    lesions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlan:
    """One site. ``annotated``: the lesion classes that it labels; it may still have unlabelled ones."""

    index: int
    name: str
    scanner: Scanner
    label_format: LabelFormat
    annotated: tuple[str, ...]
    patients: tuple[PatientPlan, ...]

    @property
    def names(self) -> Mapping[str, str]:
        """Structure to the name that its segment carries here."""
        return NAMES[self.label_format]

    @property
    def structures(self) -> tuple[str, ...]:
        """The structures that the site labels."""
        return tuple(name for name in STRUCTURES if name not in LESIONS or name in self.annotated)

    def label_map(self) -> dict[str, tuple[str, ...]]:
        """Class to the names that stand for it here; an unannotated class is absent."""
        found: dict[str, tuple[str, ...]] = {}
        for klass in (*ORGANS, *self.annotated):
            found[klass] = tuple(
                dict.fromkeys(self.names[name] for name in STRUCTURES if CLASS_OF[name] == klass)
            )
        return found

    def positives(self, lesion: str) -> int:
        """Patients who show the lesion class, labelled or not."""
        return sum(lesion in patient.lesions for patient in self.patients)


def plan_federation(settings: PhantomSettings) -> tuple[SitePlan, ...]:
    """The whole federation, without a voxel drawn."""
    if settings.held_out:
        unannotated = np.zeros((settings.sites, len(LESIONS)), bool)
        shown = _draw_evenly(settings, np.random.default_rng([settings.seed, 4]))
    else:
        rng = np.random.default_rng([settings.seed, 0])
        unannotated, vacant = _draw_gaps(settings, rng)
        shown = _draw_presence(settings, unannotated, vacant, rng)
    return tuple(
        _plan_site(settings, site, ~unannotated[site], shown[site]) for site in range(settings.sites)
    )


def _plan_site(
    settings: PhantomSettings, site: int, annotated: NDArray[np.bool_], shown: NDArray[np.bool_]
) -> SitePlan:
    turn, kind = divmod(site, len(SITE_NAMES))
    name = SITE_NAMES[kind] if turn == 0 else f"{SITE_NAMES[kind]}-{turn + 1}"
    first, letter = (_FIRST_HELD_OUT, "t") if settings.held_out else (0, "")
    patients = tuple(
        PatientPlan(
            index=first + index,
            id=f"{name}-{letter}{index + 1:04d}",
            lesions=tuple(lesion for k, lesion in enumerate(LESIONS) if shown[index, k]),
        )
        for index in range(settings.patients)
    )
    return SitePlan(
        index=site,
        name=name,
        scanner=scanner_of(site, settings.seed),
        label_format=LABEL_FORMATS[(kind + turn) % len(LABEL_FORMATS)],
        annotated=tuple(lesion for k, lesion in enumerate(LESIONS) if annotated[k]),
        patients=patients,
    )


def _draw_gaps(
    settings: PhantomSettings, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """``(sites, K)``: not annotated; annotated but without a positive patient. Each class keeps one site that is neither."""
    unannotated = np.zeros((settings.sites, len(LESIONS)), bool)
    vacant = np.zeros_like(unannotated)
    for gaps, count in ((unannotated, settings.unannotated), (vacant, settings.vacant)):
        for site in rng.permutation(settings.sites):
            for _ in range(count):
                whole = ~(unannotated | vacant)
                spare = np.where(whole[site], whole.sum(axis=0) + rng.uniform(0, 0.5, size=len(LESIONS)), 0.0)
                if spare.max() >= 2.0:
                    gaps[site, int(np.argmax(spare))] = True
    return unannotated, vacant


def _draw_presence(
    settings: PhantomSettings,
    unannotated: NDArray[np.bool_],
    vacant: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Who shows what: ``(sites, patients, K)``. At least one positive patient of each class is labelled."""
    shown = np.zeros((settings.sites, settings.patients, len(LESIONS)), bool)
    head = settings.head_share * settings.sites * settings.patients
    for k in range(len(LESIONS)):
        total = max(1, round(head * settings.imbalance ** (-k / (len(LESIONS) - 1))))
        capacity = np.where(vacant[:, k], 0, settings.patients)
        counts = _apportion(total, rng.dirichlet(np.full(settings.sites, settings.alpha)), capacity)
        labelled = np.flatnonzero(~unannotated[:, k] & ~vacant[:, k])
        if not counts[labelled].any():
            counts[int(np.argmax(counts))] -= 1
            counts[labelled[0]] += 1
        for site, count in enumerate(counts):
            shown[site, rng.choice(settings.patients, size=count, replace=False), k] = True
    return shown


def _draw_evenly(settings: PhantomSettings, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Who shows what where nothing is rare: ``(sites, patients, K)``."""
    shown = np.zeros((settings.sites, settings.patients, len(LESIONS)), bool)
    count = round(settings.head_share * settings.patients)
    for site in range(settings.sites):
        for k in range(len(LESIONS)):
            shown[site, rng.choice(settings.patients, size=count, replace=False), k] = True
    return shown


def _apportion(total: int, weights: NDArray[np.float64], capacity: NDArray[np.int_]) -> NDArray[np.int_]:
    """Split a total by weights, no share above its capacity; what does not fit goes where most is still wanted."""
    counts: NDArray[np.int_] = np.minimum(np.floor(total * weights).astype(int), capacity)
    for _ in range(min(total, int(capacity.sum())) - int(counts.sum())):
        wanted = np.where(counts < capacity, total * weights - counts, -np.inf)
        counts[int(np.argmax(wanted))] += 1
    return counts
