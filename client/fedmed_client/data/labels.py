"""A site's label names to the experiment's classes, by the label map in ``site.toml``.

Names and codes are compared without regard to case and runs of white space. A code is written ``"SCT:10200004"``: coding scheme,
colon, value. Nothing is guessed: a name that the file does not list is an error that says which line to add.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.conventions import names_of
from fedmed_common.config import Site
from fedmed_common.errors import LabelError
from fedmed_common.site_config import UNLABELLED, UNLABELLED_NAME


def normalised(name: str) -> str:
    """The form in which names are compared."""
    return " ".join(name.split()).casefold()


def assign(
    found: Sequence[tuple[str, ...]], site: Site, classes: Sequence[str], *, source: Path
) -> list[int]:
    """The class of each label found: its position in ``classes`` plus 1, or 0 where it is ignored, or ``UNLABELLED``.

    ``found``: per label all names it answers to. A label of a class that the experiment does not use is ignored too. Raises
    LabelError when a label's names are not in the site's file or stand for different things.
    """
    owners = _owners(site)
    return [_class_of(names, owners, classes, found, source) for names in found]


def annotated(site: Site, classes: Sequence[str]) -> tuple[bool, ...]:
    """Which classes the site's labels cover. An empty list of names counts: looked for, and never seen."""
    return tuple(name in site.labels for name in classes)


def flatten(masks: Iterable[NDArray[np.bool_]], assignment: Sequence[int]) -> NDArray[np.uint8]:
    """One label map ``(X, Y, Z)`` of masks that may overlap: the class later in the experiment's list wins, unlabelled over all.

    ``assignment``: each mask's class as ``assign`` gives it.
    """
    label: NDArray[np.uint8] | None = None
    for mask, klass in zip(masks, assignment, strict=True):
        if label is None:
            label = np.zeros(mask.shape, np.uint8)
        if klass:
            np.maximum(label, np.uint8(klass), out=label, where=mask)
    if label is None:
        raise LabelError("no mask to make a label map of")
    return label


def relabel(
    values: NDArray[np.int64], site: Site, classes: Sequence[str], *, source: Path
) -> NDArray[np.uint8]:
    """A map of stored values, as NIfTI and pictures hold, to one of classes. The value's name is its number, and what
    ``data.label_numbers`` calls it: of these, what the site does not list is background; so is 0.

    Where the site lists "0" as unlabelled, as in sparse annotation, a zero is that. Raises LabelError as ``assign`` does.
    """
    present = np.unique(values)
    present = present[present != 0]
    names = [names_of(value, site.data.label_numbers) for value in present.tolist()]
    owners = _owners(site)
    found = [known for known in names if len(known) == 1 or any(normalised(name) in owners for name in known)]
    classes_of = dict(zip(found, assign(found, site, classes, source=source), strict=True))
    assignment = [classes_of.get(known, 0) for known in names]
    table = np.zeros(len(present) + 1, np.uint8)
    table[1:] = assignment
    zero = UNLABELLED if "0" in site.labels.get(UNLABELLED_NAME, ()) else 0
    position = np.searchsorted(present, values) + 1
    return np.asarray(
        np.where(values == 0, np.uint8(zero), table[np.minimum(position, len(present))]), dtype=np.uint8
    )


def _owners(site: Site) -> dict[str, str | None]:
    """What each listed name stands for: a class, or None for nothing."""
    listed = [(name, klass) for klass, names in site.labels.items() for name in names]
    owners: dict[str, str | None] = {}
    for name, klass in [*listed, *((name, None) for name in site.ignore_labels)]:
        if owners.setdefault(normalised(name), klass) != klass:
            raise LabelError(
                f"site.toml: '{name}' is listed for {_said(owners[normalised(name)])} and for {_said(klass)}\n"
                "  fix: keep one of them"
            )
    return owners


def _class_of(
    names: tuple[str, ...],
    owners: dict[str, str | None],
    classes: Sequence[str],
    found: Sequence[tuple[str, ...]],
    source: Path,
) -> int:
    hits = {owners[normalised(name)]: name for name in reversed(names) if normalised(name) in owners}
    if not hits:
        choice = f'<one of {", ".join(classes)}> = ["{names[0]}"]'
        raise LabelError(
            f"{source}: site.toml lists no class for the label {_quoted(names)}; found here: {_listed(found)}\n"
            f'  fix: add to site.toml, under [labels], {choice}, or add "{names[0]}" to ignore_labels'
        )
    if len(hits) > 1:
        meanings = ", ".join(f"'{name}' for {_said(klass)}" for klass, name in hits.items())
        raise LabelError(
            f"{source}: the label {_quoted(names)} is ambiguous, as site.toml lists {meanings}; found here: {_listed(found)}\n"
            "  fix: keep in site.toml only the name that tells this label from the others"
        )
    klass = next(iter(hits))
    if klass == UNLABELLED_NAME:
        return UNLABELLED
    return classes.index(klass) + 1 if klass in classes else 0


def _said(klass: str | None) -> str:
    return "ignore_labels" if klass is None else f"the class '{klass}'"


def _quoted(names: tuple[str, ...]) -> str:
    others = f" (also {', '.join(repr(name) for name in names[1:])})" if len(names) > 1 else ""
    return f"'{names[0]}'{others}"


def _listed(found: Sequence[tuple[str, ...]]) -> str:
    return ", ".join(_quoted(names) for names in found)
