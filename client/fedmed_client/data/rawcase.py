"""A case before it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.volume import Volume
from fedmed_common.errors import LabelError, UnreadableFile

Loaded = tuple[Volume, NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RawCase:
    """One image with its label, not yet read.

    ``patient``: the site's own key of the patient; it never leaves the site. ``path``: the image, or a series' first
    file. ``load`` reads the image and its label map ``(X, Y, Z)`` on one grid; it can be sent to another process.
    ``shows``: which classes a table says that it shows; None where its label map says so.
    """

    patient: str
    path: Path
    load: Callable[[], Loaded]
    shows: tuple[bool, ...] | None = None


@contextmanager
def only_names_stop_the_site() -> Iterator[None]:
    """Within: a label file that cannot be used is one unreadable file. Outside: LabelError means an unmapped name, and stops."""
    try:
        yield
    except LabelError as error:
        raise UnreadableFile(str(error)) from error
