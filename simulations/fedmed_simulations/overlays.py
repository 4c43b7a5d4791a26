"""Pictures of predictions on held-out patients. Only a simulation can draw them: its data are on the researcher's own machine."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from fedmed_client.data.cohort import Case
from fedmed_client.workbench import COHORTS, Bench, SiteHome, bench_for, numerics
from fedmed_common import params
from fedmed_common.config import Experiment
from fedmed_common.site_config import UNLABELLED
from fedmed_common.tasks import Decision
from fedmed_common.tasks.segmentation import Segmentation, looked_for
from fedmed_server.report import Figure
from fedmed_server.state import decision_of

_MOST_SITES = 4
_PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#7B3294",
    "#999999",
    "#44AA99",
)


def draw_overlays(homes: Sequence[SiteHome], experiment: Experiment, model_file: Path) -> list[Figure]:
    """One figure a site, for the first sites that hold out test patients: reference and prediction side by side."""
    bench = bench_for(experiment.order_text())
    params.to_model(load_file(model_file), bench.model)
    decision = decision_of(model_file)
    if not isinstance(bench.task, Segmentation):
        return []
    bench.model.eval()
    figures: list[Figure] = []
    for home in homes:
        cohort, _ = COHORTS.get(home, experiment.order_text())
        cases = cohort.of("test")
        if cases and len(figures) < _MOST_SITES:
            richest = max(cases, key=lambda case: sum(case.present))
            figures.append(_figure(bench, bench.task, home.site.name, richest, decision))
    return figures


def _figure(bench: Bench, task: Segmentation, site: str, case: Case, decision: Decision) -> Figure:
    reference = looked_for(case)
    with numerics(bench.experiment, bench.device):
        prediction = task.decided(bench.model, case, bench.device, decision)
    truth = np.where(reference == UNLABELLED, 0, reference)
    plane = int(np.argmax(np.count_nonzero(truth, axis=(0, 1))))
    unlabelled = np.asarray(case.label[..., plane] == UNLABELLED)
    classes = bench.experiment.task.classes
    photograph = case.label.shape[2] == 1
    image = _grey(np.asarray(case.image[..., plane]))
    canvas = Canvas(figsize=(9.6, 4.0), dpi=110, layout="constrained")
    axes = canvas.subplots(1, 3)
    titles = ("image", "reference", "prediction")
    predicted = np.where(unlabelled, 0, prediction[..., plane])
    for axis, title, labels in zip(axes, titles, (None, truth[..., plane], predicted), strict=True):
        picture = image if labels is None else _paint(_dimmed(image, unlabelled), np.asarray(labels))
        axis.imshow(_upright(picture, case), aspect=_aspect(case, photograph))
        axis.set_title(title, fontsize=15)
        axis.axis("off")
    shown = sorted({int(k) for labels in (truth[..., plane], predicted) for k in np.unique(labels)} - {0})
    handles = [Patch(color=_PALETTE[(k - 1) % len(_PALETTE)], label=classes[k - 1]) for k in shown]
    if unlabelled.any():
        handles.append(Patch(color="#333333", label="nobody looked here"))
    if handles:
        canvas.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(5, len(handles)),
            frameon=False,
            fontsize=13,
        )
    stream = io.BytesIO()
    canvas.savefig(stream, format="png", metadata={"Software": None})
    what = (
        "A held-out test patient"
        if photograph
        else f"Slice {plane + 1} of {case.label.shape[2]} of a held-out test patient"
    )
    return Figure(
        title=f"{site}: reference and prediction",
        caption=f"{what}, the one of this site's who shows most classes. Not chosen by its score.",
        png=stream.getvalue(),
    )


def _upright(picture_XY: NDArray[np.float64], case: Case) -> NDArray[np.float64]:
    """As a radiologist looks at it: anterior at the top, the patient's right at the left. A photograph stays as it is."""
    return np.flip(picture_XY.swapaxes(0, 1), (0, 1)) if case.oriented else picture_XY


def _grey(image_CXY: NDArray[np.float32]) -> NDArray[np.float64]:
    """The first channel, or three as colours, stretched between its 1st and 99th percentile, as ``(X, Y, 3)``."""
    low, high = np.percentile(image_CXY, (1, 99))
    scaled = np.clip((image_CXY.astype(np.float64) - low) / max(high - low, 1e-6), 0, 1)
    channels = scaled if scaled.shape[0] == 3 else np.repeat(scaled[:1], 3, axis=0)
    return np.moveaxis(channels, 0, -1)


def _dimmed(image: NDArray[np.float64], where: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(where[..., None], 0.35 * image, image)


def _paint(image: NDArray[np.float64], labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    painted = image.copy()
    for k in np.unique(labels[labels > 0]):
        colour = np.array(
            [int(_PALETTE[(int(k) - 1) % len(_PALETTE)][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        )
        painted[labels == k] = 0.45 * painted[labels == k] + 0.55 * colour
    return painted


def _aspect(case: Case, photograph: bool) -> float:
    return 1.0 if photograph else case.spacing_mm[1] / case.spacing_mm[0]
