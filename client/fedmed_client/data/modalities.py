"""Cases of several series: which of them is which modality, and all of them on the grid of one.

A modality that a case lacks is a channel of NaN until the case is prepared, and of zeros from then on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from fedmed_client.data.bias import one_thread, simpleitk
from fedmed_client.data.index import Series
from fedmed_client.data.volume import Volume
from fedmed_common.config import Experiment, SiteData
from fedmed_common.errors import DataError
from fedmed_common.site_config import SeriesOf

_BINS, _SHARE, _SEED = 32, 0.5, 1
_LEAST_OVERLAP, _EDGE = 0.02, 1e-3
_SHRINKS, _SMOOTHS_MM = (4, 2, 1), (4.0, 2.0, 0.0)
_STEP, _LEAST_STEP, _ITERATIONS = 2.0, 1e-3, 200


def fits(series: Series, asked: SiteData | SeriesOf) -> bool:
    """Whether a series is of the modality, and has a description, that a site's file asks for."""
    described = asked.series_description is None or re.search(asked.series_description, series.description)
    return bool(described) and asked.modality in (None, series.modality)


def modality_of(series: Series, data: SiteData) -> str | None:
    """Which modality of the site's a series is; None: none.

    Raises:
        DataError: it fits several.
    """
    fitting = [name for name, asked in data.modalities.items() if fits(series, asked)]
    if len(fitting) > 1:
        raise DataError(
            f"its description fits the modalities {' and '.join(fitting)} of site.toml; tell them apart there"
        )
    return fitting[0] if fitting else None


def companions(
    fixed: Series, known: Sequence[tuple[str, Series]], experiment: Experiment, data: SiteData
) -> dict[str, Series]:
    """By modality, the series of a case: the ``fixed`` one, and of each other modality the one of its study. ``known``: all
    series with their modality.

    Raises:
        DataError: one that is required is missing, or there are several.
    """
    found: dict[str, Series] = {}
    for name in experiment.data.modalities:
        of_study = [
            series
            for modality, series in known
            if modality == name and (series.patient, series.study_uid) == (fixed.patient, fixed.study_uid)
        ]
        if any(series is fixed for series in of_study):
            of_study = [fixed]
        in_its_frame = [
            series for series in of_study if series.frame_of_reference == fixed.frame_of_reference
        ]
        of_study = in_its_frame or of_study
        if len(of_study) > 1:
            raise DataError(
                f"its study has {len(of_study)} series that are '{name}'; tell them apart in site.toml"
            )
        if of_study and not in_its_frame and data.registration == "none":
            raise DataError(
                f"its '{name}' has another frame of reference, so that their places mean nothing to one another; "
                "set data.registration = 'rigid' in site.toml"
            )
        if of_study:
            found[name] = of_study[0]
        elif name in data.modalities and data.modalities[name].required:
            raise DataError(f"its study has no '{name}', which site.toml requires")
    return found


def joined(
    load: Mapping[str, Callable[[], Volume]],
    fixed: str,
    experiment: Experiment,
    data: SiteData,
    elsewhere: Collection[str] = (),
) -> Volume:
    """``(C, X, Y, Z)`` on the grid of the ``fixed`` modality, a channel for each of the experiment's, in its order.
    ``elsewhere``: those whose places have another frame of reference.

    Raises:
        DataError: a series has several channels itself.
    """
    target = load[fixed]()
    channels = []
    for name in experiment.data.modalities:
        if name not in load:
            channels.append(np.full(target.shape, np.nan, np.float32))
            continue
        volume = target if name == fixed else load[name]()
        if len(volume.voxels) != 1:
            raise DataError(f"its '{name}' has {len(volume.voxels)} channels; a modality has one")
        if name != fixed:
            moved = (
                rigid(volume, target, apart=name in elsewhere) if data.registration == "rigid" else np.eye(4)
            )
            volume = on_grid(volume, target, moved)
        channels.append(np.asarray(volume.voxels[0], np.float32))
    return Volume(voxels=np.stack(channels), affine=target.affine)


def on_grid(moving: Volume, target: Volume, moved: NDArray[np.float64]) -> Volume:
    """The moving volume on the target's voxels, linearly between its own, and its least value beyond them. ``moved``: ``(4, 4)``,
    from a place in mm of the target's to the place of the moving one's that shows the same.

    Raises:
        DataError: hardly any of the target's voxels lie within the moving volume.
    """
    same = moving.shape == target.shape and np.allclose(moving.affine, target.affine, atol=1e-4)
    if same and np.array_equal(moved, np.eye(4)):
        return moving
    places = np.linalg.inv(moving.affine) @ moved @ target.affine
    outside = _outside(places, target.shape, moving.shape)
    if outside.mean() > 1 - _LEAST_OVERLAP:
        raise DataError("its series lie apart: hardly anything of one is within the other")
    voxels = []
    for channel in moving.voxels:
        plain = channel.astype(np.float32)
        between = affine_transform(
            plain, places[:3, :3], places[:3, 3], output_shape=target.shape, order=1, mode="nearest"
        )
        between[outside] = plain.min()
        voxels.append(between)
    return Volume(voxels=np.stack(voxels), affine=target.affine)


def _outside(places: NDArray[np.float64], shape: Sequence[int], within: Sequence[int]) -> NDArray[np.bool_]:
    """Which voxels of ``shape`` lie beyond the edges of the voxels of a volume of shape ``within``. ``places``: from an index of
    the one to an index of the other."""
    x, y, z = np.ogrid[tuple(slice(size) for size in shape)]
    outside = np.zeros(tuple(shape), bool)
    for axis, size in enumerate(within):
        index = places[axis, 0] * x + places[axis, 1] * y + places[axis, 2] * z + places[axis, 3]
        outside |= (index < -0.5 - _EDGE) | (index > size - 0.5 + _EDGE)
    return outside


def rigid(moving: Volume, fixed: Volume, *, apart: bool = False) -> NDArray[np.float64]:
    """``(4, 4)``: turn and shift from places in mm, RAS, of the fixed volume to those of the moving one, by mutual information.
    ``apart``: begin with their middles on one another, not with their places as they are.

    Source: Mattes et al. 2003, 'PET-CT image registration in the chest using free-form deformations', IEEE TMI 22, as SimpleITK
    has it, on three levels. One thread and one seed: a case is registered alike everywhere.

    Raises:
        ConfigError: SimpleITK is not installed.
        DataError: the two have nothing in common.
    """
    sitk = simpleitk("data.registration")

    def image(volume: Volume) -> Any:
        made = sitk.GetImageFromArray(np.ascontiguousarray(volume.voxels[0].T, np.float32))
        spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
        made.SetSpacing(spacing.tolist())
        made.SetDirection((volume.affine[:3, :3] / spacing).ravel().tolist())
        made.SetOrigin(volume.affine[:3, 3].tolist())
        return made

    with one_thread():
        found = _registered(sitk, image(fixed), image(moving), apart=apart)
    turn = np.array(found.GetMatrix()).reshape(3, 3)
    centre = np.array(found.GetCenter())
    result = np.eye(4)
    result[:3, :3] = turn
    result[:3, 3] = np.array(found.GetTranslation()) + centre - turn @ centre
    return result


def _registered(sitk: Any, one: Any, other: Any, *, apart: bool) -> Any:
    """SimpleITK's Euler3DTransform from places of one image to those of the other."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(_SHARE, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(_STEP, _LEAST_STEP, _ITERATIONS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(_SHRINKS)
    method.SetSmoothingSigmasPerLevel(_SMOOTHS_MM)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    start = sitk.CenteredTransformInitializer(
        one,
        other if apart else one,
        sitk.Euler3DTransform(),
        sitk.CenteredTransformInitializerFilter.GEOMETRY,
    )
    method.SetInitialTransform(start, inPlace=False)
    try:
        return sitk.Euler3DTransform(method.Execute(one, other).GetBackTransform())
    except (AttributeError, RuntimeError) as error:
        raise DataError(
            f"a series cannot be registered to the labelled one ({type(error).__name__}); see whether they show the same"
        ) from None
