"""Reading the two files of Fed-TCGA-BRCA as FLamby ships them.

They lie in ``flamby/datasets/fed_tcga_brca`` of owkin/FLamby on GitHub. A region is where a patient's hospital lies; the second
file says which it is, and who is tested on.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from fedmed_common.errors import ConfigError
from fedmed_simulations.published.plain import Table

FILE, SPLIT = "brca.csv", "train_test_split.csv"
REGIONS = 6
PATIENTS = {"train": (248, 156, 164, 129, 129, 40), "test": (63, 40, 42, 33, 33, 11)}
_STAGES = ("ia", "iia", "iib", "iiia", "iiic")
_CODED = {
    "ethnicity": ("not hispanic or latino", "not reported"),
    "race": ("asian", "black or african american", "not reported", "white"),
    "ajcc_pathologic_m": ("MX",),
    "ajcc_pathologic_n": ("N0 (i-)", "N1", "N1a", "N2", "N2a"),
    "ajcc_pathologic_stage": tuple(f"Stage {stage.upper()}" for stage in _STAGES),
    "ajcc_pathologic_t": ("T1c", "T2", "T3"),
    "ajcc_staging_system_edition": ("5th", "6th", "7th"),
    "icd_10_code": ("C50.9",),
    "morphology": ("8500/3", "8520/3"),
    "primary_diagnosis": ("Infiltrating duct carcinoma, NOS", "Lobular carcinoma, NOS"),
    "prior_malignancy": ("yes",),
    "synchronous_malignancy": ("Not Reported",),
    "treatment_or_therapy": ("not reported", "yes"),
    "tumor_stage": tuple(f"stage {stage}" for stage in ("i", *_STAGES)),
}
COVARIATES = ("age_at_index", *(f"{name}_{value}" for name, values in _CODED.items() for value in values))
"""Age in years, as it is; all others 0 or 1."""
COLUMNS = ("pid", *COVARIATES, "E", "T")
_FIX = f"take {FILE} and {SPLIT} unchanged from flamby/datasets/fed_tcga_brca of the repository owkin/FLamby"


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One region's patients. Targets are ``(N, 2)``: whether the patient died, and the days until then or until last seen."""

    train: Table
    test: Table


def read(file: Path) -> tuple[Region, ...]:
    """The six regions, from FLamby's ``brca.csv`` and the split, beside it or in ``dataset_creation_scripts/``.

    Raises:
        ConfigError: a file is missing or is not FLamby's; names the file, the column or line, and the fix.
    """
    split, folds = _split(file), dict[str, list[list[float]]]()
    for patient, numbers in _patients(file):
        if patient in split:
            folds.setdefault(split[patient], []).append(numbers)
    for fold, counts in PATIENTS.items():
        for region, expected in enumerate(counts):
            found = len(folds.get(f"{fold}_{region}", []))
            if found != expected:
                problem = f"{found} patients are {fold}_{region} of {SPLIT}, and should be {expected}"
                raise ConfigError(problem, file=file, field="pid", fix=_FIX)
    return tuple(
        Region(train=_table(folds[f"train_{region}"]), test=_table(folds[f"test_{region}"]))
        for region in range(REGIONS)
    )


def _table(rows: list[list[float]]) -> Table:
    numbers = torch.tensor(rows, dtype=torch.float32)
    return Table(inputs=numbers[:, :-2], targets=numbers[:, -2:])


def _split(file: Path) -> dict[str, str]:
    """By patient the fold and region, as ``train_0``."""
    places = [file.parent / SPLIT, file.parent / "dataset_creation_scripts" / SPLIT]
    place = next((one for one in places if one.is_file()), places[0])
    split: dict[str, str] = {}
    for line, (patient, _, fold) in enumerate(_rows(place, ("pid", "fold", "fold2")), start=2):
        if not re.fullmatch(rf"(train|test)_[0-{REGIONS - 1}]", fold):
            raise ConfigError(f"line {line} has '{fold}'", file=place, field="fold2", fix=_FIX)
        if patient in split:
            raise ConfigError(f"line {line} has a patient a second time", file=place, field="pid", fix=_FIX)
        split[patient] = fold
    return split


def _patients(file: Path) -> list[tuple[str, list[float]]]:
    return [
        (row[0], [_number(text, name, line, file) for name, text in zip(COLUMNS[1:], row[1:], strict=True)])
        for line, row in enumerate(_rows(file, COLUMNS), start=2)
    ]


def _number(text: str, column: str, line: int, file: Path) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    allowed = value >= 0.0 if column in {"age_at_index", "T"} else value in {0.0, 1.0}
    if not (allowed and math.isfinite(value)):
        raise ConfigError(f"line {line} has '{text}'", file=file, field=column, fix=_FIX)
    return value


def _rows(file: Path, columns: tuple[str, ...]) -> list[list[str]]:
    """The rows below the header, each as long as it."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            header, *rows = [row for row in csv.reader(lines) if row] or [[]]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read ({type(error).__name__})", file=file, fix=_FIX) from None
    for place, name in enumerate(columns):
        if header[place : place + 1] != [name]:
            raise ConfigError(f"column {place + 1} is not this one", file=file, field=name, fix=_FIX)
    for line, row in enumerate(rows, start=2):
        if len(row) != len(columns):
            problem = f"line {line} has {len(row)} cells, and should have {len(columns)}"
            raise ConfigError(problem, file=file, fix=_FIX)
    return rows
