"""From a study's folder to its results: which series a model is for, and what is written of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.dicom_cases import is_wanted, volume_of
from fedmed_client.data.index import Series
from fedmed_client.data.modalities import companions, modality_of
from fedmed_client.data.scan import scan
from fedmed_client.data.series import load_series
from fedmed_client.data.text import printable
from fedmed_client.data.volume import Volume
from fedmed_client.predict.apply import ANY_DEVICE, predict
from fedmed_client.predict.released import Released
from fedmed_client.predict.segmentation import Provenance, write_segmentation
from fedmed_client.predict.structures import write_structures
from fedmed_client.preflight.thumbnails import montage
from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError, DataError
from fedmed_common.site_config import Device, SiteData


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a study is looked at, and what is written of it. ``flips``, ``dropouts``, ``device``: as of :func:`apply.predict`."""

    flips: bool = False
    dropouts: int = 0
    structures: bool = False
    device: Device = ANY_DEVICE


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a series. ``files``: its segmentation, and its structure set where it was asked for; none: nothing was found
    in it, or ``problem`` says why there is none.
    ``note``: what else was asked for and is not there, and why.

    ``ml``: by class; ``doubt``: by class, the mean doubt over its voxels, 0 to 1; ``picture``: PNG."""

    series: str
    modality: str
    description: str
    files: tuple[Path, ...] = ()
    problem: str = ""
    note: str = ""
    ml: dict[str, float] | None = None
    doubt: dict[str, float] | None = None
    looks: int = 0
    picture: bytes = b""


PLAINLY = Wish()
"""One look, and DICOM SEG alone."""


def predict_study(
    study: Path,
    models: Sequence[Released],
    folder: Path,
    wanted: SiteData | None = None,
    wish: Wish = PLAINLY,
) -> Iterator[Outcome]:
    """Each series in ``study`` that is wanted: segmented, and what is wished for written into ``folder``. ``wanted``: by the
    site's own file, which modality and description; None: all that fit the experiment's channels.

    Raises:
        ConfigError: ``study`` is no folder, or a model cannot predict here.
    """
    index, several = scan(study), bool(models[0].experiment.data.modalities)
    taken = [one for one in index.series if wanted is None or is_wanted(one, wanted, several=several)]
    if several:
        yield from _of_several(taken, models, folder, wanted, wish)
        return
    for series in taken:
        yield _outcome(series, partial(load_series, series), models, folder, wish)


def _of_several(
    taken: Sequence[Series], models: Sequence[Released], folder: Path, wanted: SiteData | None, wish: Wish
) -> Iterator[Outcome]:
    """Of each study the outcome that refers to the experiment's first modality that is there, of all of them together.

    Raises:
        ConfigError: the site does not say which series is of which modality.
    """
    experiment = models[0].experiment
    if wanted is None or not wanted.modalities:
        raise ConfigError(
            f"is missing: '{experiment.name}' needs {', '.join(experiment.data.modalities)}",
            field="data.modalities",
            fix="say in site.toml which series is of which modality, and name its folder with --home",
        )
    known: list[tuple[str, Series]] = []
    for series in taken:
        try:
            name = modality_of(series, wanted)
        except DataError as error:
            yield replace(_named(series), problem=_in_a_line(error))
            continue
        if name is not None:
            known.append((name, series))
    for study in dict.fromkeys((series.patient, series.study_uid) for _, series in known):
        of_study = [(name, one) for name, one in known if (one.patient, one.study_uid) == study]
        first = next((name for name in experiment.data.modalities if name in dict(of_study)), None)
        fixed = [one for name, one in of_study if name == first]
        if first is not None and len(fixed) > 1:
            why = f"its study has {len(fixed)} series that are '{first}'; tell them apart in site.toml"
            yield replace(_named(fixed[0]), problem=why)
        elif first is not None:
            load = partial(_joined, fixed[0], first, of_study, experiment, wanted)
            yield _outcome(fixed[0], load, models, folder, wish)


def _named(series: Series) -> Outcome:
    return Outcome(
        series=series.uid, modality=printable(series.modality), description=printable(series.description)
    )


def _joined(
    fixed: Series, first: str, known: Sequence[tuple[str, Series]], experiment: Experiment, wanted: SiteData
) -> Volume:
    parts = companions(fixed, known, experiment, wanted)
    return volume_of(parts, first, experiment, wanted)


def _outcome(
    series: Series, load: Callable[[], Volume], models: Sequence[Released], folder: Path, wish: Wish
) -> Outcome:
    classes = models[0].experiment.task.classes
    told = _named(series)
    try:
        volume = load()
        found = predict(models, volume, flips=wish.flips, dropouts=wish.dropouts, device=wish.device)
        made_by = Provenance(models=models, looks=found.looks)
        written = [write_segmentation(found.label, series, made_by, folder)]
        picture = montage(volume, found.label)
    except (DataError, OSError) as error:
        return replace(told, problem=_in_a_line(error))
    note = ""
    if wish.structures:
        try:
            written.append(write_structures(found.label, volume, series, made_by, folder))
        except (DataError, OSError) as error:
            note = f"no RTSTRUCT: {_in_a_line(error)}"
    voxel = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000
    shown = {name: found.label == number for number, name in enumerate(classes, start=1)}
    return replace(
        told,
        files=tuple(file for file in written if file is not None),
        note=note,
        ml={name: float(mask.sum()) * voxel for name, mask in shown.items()},
        doubt=None if found.doubt is None else _doubts(shown, found.doubt),
        looks=found.looks,
        picture=picture,
    )


def _in_a_line(error: Exception) -> str:
    return printable(str(error).replace("\n", "; "))


def _doubts(shown: dict[str, NDArray[np.bool_]], doubt: NDArray[np.float32]) -> dict[str, float]:
    return {name: float(doubt[mask].mean()) for name, mask in shown.items() if mask.any()}
