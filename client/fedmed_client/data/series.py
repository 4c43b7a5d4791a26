"""One series as a volume: its frames decoded, put in order, and placed in the patient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from fedmed_client.data.geometry import Plane, Stack, stack_planes
from fedmed_client.data.index import Series
from fedmed_client.data.pixels import decode, fill_padding, values
from fedmed_client.data.text import printable
from fedmed_client.data.volume import Volume
from fedmed_common.errors import DataError, GeometryError, UnreadableFile

_TELLING = (
    "StackID",
    "TemporalPositionIndex",
    "EffectiveEchoTime",
    "EchoTime",
    "DiffusionBValue",
    "FrameType",
    "AcquisitionNumber",
    "TriggerTime",
    "AcquisitionTime",
)
"""What may explain that two different images lie in one place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """One image of one file. ``plane`` is None for a picture without a place; ``rescale``: slope, intercept."""

    file: int
    number: int
    name: str
    plane: Plane | None
    rescale: tuple[float, float] | None
    telling: dict[str, str]


_Values = Callable[[_Frame], NDArray[np.float32]]


def load_series(series: Series) -> Volume:
    """Read, decode and stack the images of a series.

    Voxels are float32 ``(C, X, Y, Z)``, X along image rows (growing column index), Y along image columns, Z along
    the normal; C is 3 for colour. The affine comes from positions and orientations alone; under gantry tilt it is
    sheared, which is exact (see `geometry.stack_planes`). A single slice takes SpacingBetweenSlices or
    SliceThickness as its depth, or 1 mm. A picture without geometry (CR, US, SC) is ``(C, rows, columns, 1)`` like
    a photograph; its affine holds PixelSpacing or ImagerPixelSpacing, or is the identity. Values are after rescale,
    per slice; see `pixels.values`. Padding takes the volume's smallest other value. A slice that repeats another
    one, in place and in values, is dropped.

    Raises GeometryError where frames do not form one even stack (gap, two different images in one place, several
    time points, a film), DecoderMissing naming the transfer syntax, UnreadableFile for the rest.
    """
    source = f"series {printable(series.uid)}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets = [_open(path) for path in series.files]
        frames = [
            frame
            for file, (dataset, path) in enumerate(zip(datasets, series.files, strict=True))
            for frame in _frames(dataset, file, path)
        ]
        _check_matrix(datasets, series.files, source)
        read = _reader(datasets, series.files)
        stack = _stacked(frames, source)
        if stack is None:
            return _picture(datasets[0], frames, read, source)
        for kept, repeated in stack.repeats:
            _check_repeat(frames[kept], frames[repeated], read, source)
        return _volume(frames, stack, read)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where the images of a series lie in ``load_series``'s volume. ``depths``: by an image's number, which is that of the file
    in ``series.files``, or, of a single file, that of the frame; a slice that repeats another one is left out. ``is_picture``:
    it has no place, and the volume is ``(C, rows, columns, 1)``."""

    depths: Mapping[int, int]
    is_picture: bool = False


def depths_of(series: Series) -> Placed:
    """Where each image lies.

    Raises GeometryError and UnreadableFile as ``load_series`` does.
    """
    source = f"series {printable(series.uid)}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frames = [
            frame
            for file, path in enumerate(series.files)
            for frame in _frames(_open(path, pixels=False), file, path)
        ]
    stack = _stacked(frames, source)
    if stack is None:
        return Placed(depths={0: 0}, is_picture=True)
    alone = len(series.files) == 1
    return Placed(
        depths={
            frames[place].number if alone else frames[place].file: depth
            for depth, place in enumerate(stack.order)
        }
    )


def _stacked(frames: Sequence[_Frame], source: str) -> Stack | None:
    """The frames in space; None where they have no places."""
    planes = [frame.plane for frame in frames if frame.plane is not None]
    if not planes:
        return None
    if len(planes) < len(frames):
        raise GeometryError(f"{source}: {len(frames) - len(planes)} of {len(frames)} images have no position")
    return stack_planes(planes, source=source)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a broken file raises becomes an UnreadableFile that names it."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        detail = printable(f"{type(error).__name__}: {error}")[:300]
        raise UnreadableFile(f"{printable(str(path))}: {detail}") from error


def _open(path: Path, *, pixels: bool = True) -> Dataset:
    with _reading(path):
        return dcmread(path, force=True, stop_before_pixels=not pixels)


def _frames(dataset: Dataset, file: int, path: Path) -> list[_Frame]:
    with _reading(path):
        count = int(dataset.get("NumberOfFrames") or 1)
        per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
        if not per_frame:
            place = dataset if count == 1 else Dataset()
            return [_frame(place, file, number, path.name) for number in range(count)]
        if len(per_frame) != count:
            raise UnreadableFile(f"{printable(str(path))}: describes {len(per_frame)} of its {count} frames")
        shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or ()), Dataset())
        names = (f"{path.name} frame {number + 1}" for number in range(count))
        return [
            _frame(_flatten(shared, item), file, number, name)
            for number, (item, name) in enumerate(zip(per_frame, names, strict=True))
        ]


def _flatten(shared: Dataset, own: Dataset) -> Dataset:
    """The functional groups of one frame as one flat dataset; its own take precedence over shared ones."""
    flat = Dataset()
    for groups in (shared, own):
        for element in groups:
            if element.VR == "SQ" and not element.tag.is_private and len(element.value) > 0:
                flat.update(element.value[0])
    return flat


def _frame(place: Dataset, file: int, number: int, name: str) -> _Frame:
    slope, intercept = place.get("RescaleSlope"), place.get("RescaleIntercept")
    return _Frame(
        file=file,
        number=number,
        name=printable(name),
        plane=_plane(place, printable(name)),
        rescale=None if slope is None else (float(slope), float(intercept or 0)),
        telling={keyword: printable(str(place[keyword].value)) for keyword in _TELLING if keyword in place},
    )


def _plane(place: Dataset, name: str) -> Plane | None:
    position, orientation = place.get("ImagePositionPatient"), place.get("ImageOrientationPatient")
    if not position or not orientation:
        return None
    spacing = place.get("PixelSpacing") or ()
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
        raise GeometryError(f"{name}: position, orientation or pixel spacing is incomplete")
    return Plane(
        name=name,
        position=tuple(float(value) for value in position),
        along_row=tuple(float(value) for value in orientation[:3]),
        along_column=tuple(float(value) for value in orientation[3:]),
        spacing_mm=tuple(float(value) for value in spacing),
        thickness_mm=_thickness_mm(place),
    )


def _thickness_mm(place: Dataset) -> float:
    declared = (float(place.get(keyword) or 0) for keyword in ("SpacingBetweenSlices", "SliceThickness"))
    return next((value for value in declared if value > 0), 1.0)


def _check_matrix(datasets: Sequence[Dataset], files: Sequence[Path], source: str) -> None:
    def matrix(dataset: Dataset) -> tuple[Any, ...]:
        return tuple(dataset.get(keyword) for keyword in ("Rows", "Columns", "SamplesPerPixel"))

    for dataset, path in zip(datasets, files, strict=True):
        if matrix(dataset) != matrix(datasets[0]):
            raise GeometryError(f"{source}: {files[0].name} and {path.name} differ in matrix size or colour")


def _reader(datasets: list[Dataset], files: Sequence[Path]) -> _Values:
    """Values of a frame, ``(rows, columns)`` or ``(rows, columns, 3)``; keeps the file it decoded last."""
    last: dict[int, NDArray[Any]] = {}

    def read(frame: _Frame) -> NDArray[np.float32]:
        with _reading(files[frame.file]):
            if frame.file not in last:
                last.clear()
                last[frame.file] = decode(datasets[frame.file], source=printable(str(files[frame.file])))
            return values(last[frame.file][frame.number], datasets[frame.file], frame.rescale)

    return read


def _picture(dataset: Dataset, frames: Sequence[_Frame], read: _Values, source: str) -> Volume:
    if len(frames) != 1:
        raise GeometryError(f"{source}: a film of {len(frames)} frames without positions is not a volume")
    image = read(frames[0])
    voxels = np.moveaxis(image.reshape(*image.shape[:2], -1), -1, 0)[..., None]
    fill_padding(voxels)
    spacing: Sequence[float] = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing") or ()
    affine = np.eye(4)
    if len(spacing) == 2 and min(float(value) for value in spacing) > 0:
        affine[0, 0], affine[1, 1] = float(spacing[0]), float(spacing[1])
    return Volume(voxels=voxels, affine=affine)


def _check_repeat(kept: _Frame, repeated: _Frame, read: _Values, source: str) -> None:
    if np.array_equal(read(kept), read(repeated), equal_nan=True):
        return
    apart = [key for key in _TELLING if kept.telling.get(key) != repeated.telling.get(key)]
    hint = f", apart in {', '.join(apart)}: several time points, echoes or stacks" if apart else ""
    raise GeometryError(f"{source}: {kept.name} and {repeated.name} are different images in one place{hint}")


def _volume(frames: Sequence[_Frame], stack: Stack, read: _Values) -> Volume:
    """Filled plane by plane in the order of the files, so that each file is decoded once."""
    depth_of = {frame: depth for depth, frame in enumerate(stack.order)}
    voxels_ZYXC: NDArray[np.float32] | None = None
    for index, frame in enumerate(frames):
        if index not in depth_of:
            continue
        image = read(frame)
        if voxels_ZYXC is None:
            channels = 1 if image.ndim == 2 else image.shape[2]
            voxels_ZYXC = np.empty((len(stack.order), *image.shape[:2], channels), np.float32)
        voxels_ZYXC[depth_of[index]] = image.reshape(*image.shape[:2], -1)
    assert voxels_ZYXC is not None  # noqa: S101
    fill_padding(voxels_ZYXC)
    return Volume(voxels=voxels_ZYXC.transpose(3, 2, 1, 0), affine=stack.affine)
