"""Which patients train, validate and test.

Follows the iterative stratification of Sechidis, Tsoumakas and Vlahavas (ECML 2011): rarest class first, each patient
to the split that still lacks that class most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np

from fedmed_common.config import Splits

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, Split, Split] = ("train", "validation", "test")
_LEAST_PATIENTS = 3


def split_patients(shows: Mapping[str, Collection[int]], splits: Splits, seed: int) -> dict[str, Split]:
    """Give each patient one split.

    Args:
        shows: patient key -> classes that the patient shows. splits: shares held out. With three patients or more,
        each split whose share is above zero gets at least one; with fewer, all
            train.
        seed: with the set of keys, decides; neither the order of the patients nor anything else does.
    """
    keys = sorted(shows)
    digest = hashlib.sha256("\0".join([str(seed), *keys]).encode()).digest()
    keys = [keys[place] for place in np.random.default_rng(list(digest)).permutation(len(keys))]
    room = dict(zip(SPLITS, _sizes(len(keys), splits), strict=True))
    share = {split: room[split] / max(1, len(keys)) for split in SPLITS}
    chosen: dict[str, Split] = {}
    waiting = {
        klass: [key for key in keys if klass in shows[key]]
        for klass in sorted({k for key in keys for k in shows[key]})
    }
    wanted = {
        klass: {split: share[split] * len(members) for split in SPLITS} for klass, members in waiting.items()
    }
    while waiting:
        klass = min(waiting, key=lambda k: (len(waiting[k]), k))
        key = waiting[klass][0]
        chosen[key] = _neediest(wanted[klass], room, unseen=not any(klass in shows[k] for k in chosen))
        room[chosen[key]] -= 1
        for other in shows[key]:
            wanted[other][chosen[key]] -= 1
            waiting[other].remove(key)
        waiting = {k: members for k, members in waiting.items() if members}
    for key in keys:
        if key not in chosen:
            chosen[key] = _neediest(dict.fromkeys(SPLITS, 0.0), room, unseen=False)
            room[chosen[key]] -= 1
    return {key: chosen[key] for key in sorted(chosen)}


def _neediest(wanted: Mapping[Split, float], room: Mapping[Split, int], *, unseen: bool) -> Split:
    """The split with room that lacks the class most; the first patient of a class trains, as a class not trained on is lost."""
    if unseen and room["train"] > 0:
        return "train"
    return max((split for split in SPLITS if room[split] > 0), key=lambda split: (wanted[split], room[split]))


def _sizes(patients: int, splits: Splits) -> list[int]:
    """Patients per split, by largest remainder, then at least one where the share is above zero."""
    if patients < _LEAST_PATIENTS:
        return [patients, 0, 0]
    shares = [1.0 - splits.validation - splits.test, splits.validation, splits.test]
    exact = [share * patients for share in shares]
    sizes = [int(part) for part in exact]
    by_remainder = sorted(range(3), key=lambda n: (sizes[n] - exact[n], n))
    for number in by_remainder[: patients - sum(sizes)]:
        sizes[number] += 1
    for number in range(3):
        if sizes[number] == 0 and shares[number] > 0:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[number] = 1
    return sizes
