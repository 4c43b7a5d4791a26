"""The losses against NumPy, MONAI and themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss
from numpy.typing import NDArray
from skimage import measure

from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.site_config import UNLABELLED
from fedmed_common.task_config import COUPLED_LOSSES
from fedmed_common.tasks import LOSSES, build_task
from fedmed_common.tasks.segmentation import Segmentation

CLASSES = ("liver", "spleen", "tumour")
few = settings(max_examples=25, deadline=None)
UNCOUPLED = sorted(LOSSES.keys() - COUPLED_LOSSES)
losses = st.sampled_from(UNCOUPLED)
seeds = st.integers(0, 2**32 - 1)


def task(loss: str = "dice_ce") -> Segmentation:
    return build_task(
        Experiment.model_validate(
            {
                "name": "losses",
                "rounds": 1,
                "task": {"classes": CLASSES, "dimensions": 2, "loss": loss},
                "data": {"patch": (16, 16)},
            }
        )
    )


def draw(seed: int, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels that show some of the annotated classes, and which are annotated."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 6, size=rng.integers(2, 4)))
    annotated = rng.random((batch, len(CLASSES))) < 0.6
    label = rng.integers(0, len(CLASSES) + 1, (batch, *shape))
    for index, known in enumerate(annotated):
        shown = np.append(True, known & (rng.random(len(CLASSES)) < 0.7))
        label[index] *= shown[label[index]]
    logits = rng.normal(scale=rng.choice([0.1, 3.0]), size=(batch, len(CLASSES) + 1, *shape))
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(label), torch.tensor(annotated)


Shares, Truth, Shown = NDArray[np.float64], NDArray[np.bool_], list[int]


def _mean_tversky(alpha: float, beta: float) -> Callable[[Shares, Truth, Shown], float]:
    def loss(shares: Shares, truth: Truth, shown: Shown) -> float:
        indices = []
        for value in shown:
            both = (shares[value] * truth[value]).sum()
            wrong, missed = (shares[value] * ~truth[value]).sum(), ((1 - shares[value]) * truth[value]).sum()
            indices.append(both / (both + alpha * wrong + beta * missed))
        return 1 - float(np.mean(indices)) if shown else 0.0

    return loss


def _generalised_dice(shares: Shares, truth: Truth, _shown: Shown) -> float:
    weights = [1 / mask.sum() ** 2 if mask.any() else 0.0 for mask in truth]
    both = sum(w * (s * t).sum() for w, s, t in zip(weights, shares, truth, strict=True))
    either = sum(w * (s + t).sum() for w, s, t in zip(weights, shares, truth, strict=True))
    return float(1 - 2 * both / either)


def _boundary(shares: Shares, truth: Truth, shown: Shown) -> float:
    terms = []
    for value in shown:
        inside, outside = np.argwhere(truth[value]), np.argwhere(~truth[value])
        if len(outside):
            to_inside = np.array([min(np.linalg.norm(p - q) for q in inside) for p in outside])
            to_outside = np.array([min(np.linalg.norm(p - q) for q in outside) for p in inside])
            total = (shares[value][~truth[value]] * to_inside).sum()
            total -= (shares[value][truth[value]] * (to_outside - 1)).sum()
            terms.append(total / truth[value].size)
    return float(np.mean(terms)) if terms else 0.0


def _balance(truth: Truth) -> NDArray[np.float64]:
    counts = truth.reshape(len(truth), -1).sum(1)
    return truth[0].size / (np.count_nonzero(counts) * counts[truth.argmax(0)])


def _sparse_ce(shares: Shares, truth: Truth, _shown: Shown) -> float:
    return float((_balance(truth) * -np.log((shares * truth).sum(0))).mean())


def _border_ce(shares: Shares, truth: Truth, shown: Shown) -> float:
    instances = []
    for value in shown:
        numbers = measure.label(truth[value], connectivity=truth[value].ndim)
        instances += [np.argwhere(numbers == number) for number in range(1, numbers.max() + 1)]
    weights = _balance(truth)
    for place in np.argwhere(truth[0]) if len(instances) > 1 else []:
        nearest = sorted(np.linalg.norm(points - place, axis=1).min() for points in instances)[:2]
        weights[tuple(place)] += 10 * np.exp(-(sum(nearest) ** 2) / (2 * 5**2))
    return float((weights * -np.log((shares * truth).sum(0))).mean())


PARTS: dict[str, Callable[[Shares, Truth, Shown], float]] = {
    "dice": _mean_tversky(0.5, 0.5),
    "cross_entropy": lambda shares, truth, _: -float(np.log(shares[truth]).mean()),
    "generalised_dice": _generalised_dice,
    "tversky": _mean_tversky(0.3, 0.7),
    "focal": lambda shares, truth, _: -float((np.log(shares[truth]) * (1 - shares[truth]) ** 2).mean()),
    "sparse_ce": _sparse_ce,
    "boundary": _boundary,
    "border_ce": _border_ce,
}


def reference(
    loss: str, logits: NDArray[np.float64], label: NDArray[np.int64], annotated: NDArray[np.bool_]
) -> float:
    """One sample, by the definition: merge, one-hot, sum."""
    shares = np.exp(logits - logits.max(0))
    shares /= shares.sum(0)
    hidden = np.flatnonzero(~annotated) + 1
    shares[0] += shares[hidden].sum(0)
    shares[hidden] = 0
    truth = np.stack([label == value for value in range(len(shares))])
    shown = [value for value in range(1, len(shares)) if truth[value].any()]
    terms = {"dice", "cross_entropy"} if loss == "dice_ce" else {loss}
    terms = {"dice", "focal"} if loss == "dice_focal" else terms
    if loss == "dice_boundary":
        return PARTS["generalised_dice"](shares, truth, shown) + 0.01 * PARTS["boundary"](
            shares, truth, shown
        )
    return sum(PARTS[term](shares, truth, shown) for term in terms)


def of_one_class(
    loss: str, foreground: list[list[float]], label: list[list[int]], known: bool = True, **settings_: float
) -> float:
    """The loss of images along a line, from the probability of the one class at each voxel."""
    share = torch.tensor(foreground)
    asked = {"classes": ["disc"], "dimensions": 2, "loss": loss, "loss_settings": settings_}
    both = {"name": "line", "rounds": 1, "task": asked, "data": {"patch": (16, 16)}}
    made = build_task(Experiment.model_validate(both))
    assert isinstance(made, Segmentation)
    logits = torch.stack([1 - share, share], 1).log()
    return made.loss(logits, torch.tensor(label), torch.full((len(label), 1), known)).item()


@pytest.mark.parametrize(
    ("loss", "settings_", "by_hand"),
    [
        ("dice", {}, 1 - 2.4 / 3.6),
        ("cross_entropy", {}, 0.400367),
        ("dice_ce", {}, 0.333333 + 0.400367),
        ("generalised_dice", {}, 1 - 2 * (1.2 + 1.6) / (3.6 + 4.4)),
        ("tversky", {}, 1 - 1.2 / (1.2 + 0.3 * 0.4 + 0.7 * 0.8)),
        ("tversky", {"alpha": 1.0, "beta": 0.5}, 1 - 1.2 / (1.2 + 0.4 + 0.5 * 0.8)),
        ("focal", {}, (0.04 * 0.223144 + 0.36 * 0.916291 + 0.01 * 0.105361 + 0.09 * 0.356675) / 4),
        ("focal", {"gamma": 0.0}, 0.400367),
        ("dice_focal", {}, 0.333333 + 0.092986),
        ("sparse_ce", {}, 0.400367),  # as many voxels of each
        ("boundary", {}, (-1 * 0.8 + 0 * 0.4 + 1 * 0.1 + 2 * 0.3) / 4),
        ("dice_boundary", {}, 0.3 + 0.01 * -0.025),
        ("dice_boundary", {"boundary_weight": 2.0}, 0.3 + 2 * -0.025),
        ("border_ce", {}, 0.400367),  # one instance has no neighbour
        ("batch_dice", {}, 1 - 2.4 / 3.6),
        ("batch_dice_ce", {}, 0.333333 + 0.400367),
    ],
)
def test_equals_what_a_hand_computes(loss: str, settings_: dict[str, float], by_hand: float) -> None:
    assert LOSSES.keys() >= {loss}
    found = of_one_class(loss, [[0.8, 0.4, 0.1, 0.3]], [[1, 1, 0, 0]], **settings_)
    assert found == pytest.approx(by_hand, abs=2e-6)


def test_two_instances_push_their_border_apart_as_a_hand_computes() -> None:
    balanced = [0.223144, 0.510826, 2.302585, 0.356675]
    between = 10 * np.exp(-((1 + 1) ** 2) / 50) * 0.510826 + 10 * np.exp(-((1 + 3) ** 2) / 50) * 0.356675
    found = of_one_class("border_ce", [[0.8, 0.4, 0.1, 0.3]], [[1, 0, 1, 0]])
    assert found == pytest.approx((sum(balanced) + between) / 4, abs=2e-6)
    plain = of_one_class("border_ce", [[0.8, 0.4, 0.1, 0.3]], [[1, 0, 1, 0]], border_weight=0.0)
    assert plain == pytest.approx(sum(balanced) / 4, abs=2e-6)


def test_the_dice_of_a_batch_counts_all_its_voxels_as_one_image() -> None:
    shares, label = [[0.8, 0.4, 0.1, 0.3], [0.1, 0.2, 0.3, 0.5]], [[1, 1, 0, 0], [0, 0, 0, 1]]
    together = 1 - 2 * (1.2 + 0.5) / (1.6 + 1.1 + 3)
    assert of_one_class("batch_dice", shares, label) == pytest.approx(together, abs=2e-6)
    entropy = (0.400367 + 0.344582) / 2
    assert of_one_class("batch_dice_ce", shares, label) == pytest.approx(together + entropy, abs=2e-6)


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        ("dice", 1 - 2.4 / (1.3 + 2)),
        ("cross_entropy", (0.223144 + 0.916291 + 0.105361) / 3),
        ("sparse_ce", (0.75 * 0.223144 + 0.75 * 0.916291 + 1.5 * 0.105361) / 3),
        ("boundary", (-1 * 0.8 + 0 * 0.4 + 1 * 0.1) / 3),
    ],
)
def test_what_nobody_looked_at_is_left_out_as_by_hand(loss: str, by_hand: float) -> None:
    found = of_one_class(loss, [[0.8, 0.4, 0.1, 0.3]], [[1, 1, 0, UNLABELLED]])
    assert found == pytest.approx(by_hand, abs=2e-6)


def test_an_unannotated_class_is_part_of_the_background_as_by_hand() -> None:
    share = torch.tensor([[[0.5], [0.2], [0.3], [1e-9]]])
    known = torch.tensor([[True, False, True]])
    found = task("cross_entropy").loss(share.log(), torch.tensor([[0]]), known).item()
    assert found == pytest.approx(-np.log(0.5 + 0.3), abs=2e-6)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_no_gradient_comes_from_what_nobody_looked_at(loss: str) -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(2, 4, 6, 7), torch.randint(0, 4, (2, 6, 7))
    label[0, 2:5], label[1, :, 3] = UNLABELLED, UNLABELLED
    annotated = torch.tensor([[True, True, True], [True, False, True]])
    hidden = (label == UNLABELLED)[:, None].expand_as(logits)
    logits.requires_grad_()
    value = task(loss).loss(logits, label, annotated)
    value.backward()
    assert logits.grad is not None
    assert not logits.grad[hidden].any()
    assert logits.grad[~hidden].any()
    elsewhere = torch.where(hidden, torch.randn_like(logits), logits.detach())
    torch.testing.assert_close(task(loss).loss(elsewhere, label, annotated), value.detach())


@few
@given(losses, seeds)
def test_equals_the_definition(loss: str, seed: int) -> None:
    logits, label, annotated = draw(seed)
    expected = [
        reference(loss, *(tensor.numpy() for tensor in (sample.double(), truth, known)))
        for sample, truth, known in zip(logits, label, annotated, strict=True)
    ]
    assert task(loss).loss(logits, label, annotated).item() == pytest.approx(
        np.mean(expected), rel=1e-5, abs=1e-6
    )


@few
@given(losses, seeds)
def test_a_batch_is_the_mean_of_its_samples_and_so_is_its_gradient(loss: str, seed: int) -> None:
    logits, label, annotated = draw(seed)
    together, alone = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    batched = task(loss).loss(together, label, annotated)
    single = torch.stack(
        [
            task(loss).loss(alone[i : i + 1], label[i : i + 1], annotated[i : i + 1])
            for i in range(len(logits))
        ]
    ).mean()
    batched.backward()
    single.backward()
    torch.testing.assert_close(batched, single)
    torch.testing.assert_close(together.grad, alone.grad)


@few
@given(seeds)
def test_equals_monai_over_the_present_classes_where_all_are_annotated(seed: int) -> None:
    logits, label, annotated = draw(seed)
    expected = []
    for sample, truth in zip(logits, label, strict=True):
        shown = [value for value in range(1, len(CLASSES) + 1) if (truth == value).any()]
        monai = DiceCELoss(
            include_background=False, to_onehot_y=True, softmax=True, smooth_nr=0.0, smooth_dr=0.0
        )
        monai.dice.reduction = "none"
        one, one_label = sample[None], truth[None, None]
        overlap_loss = (
            monai.dice(one, one_label).flatten()[[value - 1 for value in shown]].mean() if shown else 0.0
        )
        expected.append(overlap_loss + monai.ce(one, one_label))
    actual = task().loss(logits, label, torch.ones_like(annotated))
    torch.testing.assert_close(actual, torch.stack(expected).mean())


@few
@given(losses, seeds, st.floats(0.01, 0.99))
def test_how_background_and_an_unannotated_class_share_their_probability_is_no_matter(
    loss: str, seed: int, share: float
) -> None:
    logits, label, annotated = draw(seed)
    annotated[:, 0], annotated[:, 1:] = False, True
    label[label == 1] = 0
    shares = logits.softmax(1)
    both = shares[:, 0] + shares[:, 1]
    moved = torch.stack([both * share, both * (1 - share), *shares[:, 2:].unbind(1)], dim=1).log()
    torch.testing.assert_close(
        task(loss).loss(moved, label, annotated), task(loss).loss(logits, label, annotated)
    )


@few
@given(losses, seeds)
def test_the_gradient_goes_to_the_merged_classes_by_their_probabilities(loss: str, seed: int) -> None:
    logits, label, annotated = draw(seed)
    annotated[:, 0], annotated[:, 1:] = False, True
    label[label == 1] = 0
    logits.requires_grad_()
    task(loss).loss(logits, label, annotated).backward()
    assert logits.grad is not None
    shares = logits.detach().softmax(1)
    torch.testing.assert_close(logits.grad[:, 0] * shares[:, 1], logits.grad[:, 1] * shares[:, 0])


@few
@given(losses, seeds)
def test_an_unannotated_class_in_a_label_is_read_as_background(loss: str, seed: int) -> None:
    logits, label, annotated = draw(seed)
    annotated[:, 0] = False
    shown = torch.where(label == 0, 1, label)
    torch.testing.assert_close(
        task(loss).loss(logits, shown, annotated), task(loss).loss(logits, label, annotated)
    )


def test_a_sample_without_foreground_has_no_dice_term() -> None:
    logits = torch.randn(1, 4, 5, 5, requires_grad=True)
    loss = task("dice").loss(
        logits, torch.zeros(1, 5, 5, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool)
    )
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("value", [0, 3])
@pytest.mark.parametrize("known", [True, False])
def test_extreme_logits_leave_loss_and_gradient_finite(loss: str, value: int, known: bool) -> None:
    logits = torch.full((1, 4, 3, 3), -1e4)
    logits[:, 2] = 1e4
    logits.requires_grad_()
    task(loss).loss(logits, torch.full((1, 3, 3), value), torch.tensor([[known, True, True]])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_half_precision_logits_are_summed_in_full() -> None:
    logits, label, annotated = draw(3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = task().loss(logits.bfloat16(), label, annotated)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, task().loss(logits.bfloat16().float(), label, annotated))


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)task\.loss: unknown name 'dice_cee'.*did you mean 'dice_ce'\?"
    ):
        task("dice_cee")
    settings_ = task().experiment.model_dump(mode="json")
    settings_["task"]["name"] = "segmentatoin"
    with pytest.raises(ConfigError, match=r"(?s)task\.name: unknown name.*did you mean 'segmentation'\?"):
        build_task(Experiment.model_validate(settings_))
