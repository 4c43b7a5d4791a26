"""Losses and samplers for rare and missing classes, against their formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmed_common.tasks.label_losses import binary_cross_entropy
from fedmed_common.tasks.losses import cross_entropy, dice_ce
from fedmed_common.tasks.losses_voxelwise import dice_focal
from fedmed_strategies.longtail.distilled import Conditional, Exclusion, Vacant, ramp
from fedmed_strategies.longtail.logits import Calibrated, LogitAdjustment, Restricted
from fedmed_strategies.longtail.rare import Rare
from fedmed_strategies.longtail.weighted import ClassBalanced, Focal, Rarity
from fedmed_strategies.pieces import Layers, Piece, SiteHalf, Work

SampleLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Fixed(nn.Module):
    """A network whose logits are numbers of its own."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, image: Tensor) -> Tensor:
        return self.logits


def work(
    presence: tuple[int, ...] = (6, 2, 0),
    annotated: tuple[bool, ...] = (True, True, True),
    kind: Any = "segmentation",
    model: nn.Module | None = None,
    down: Mapping[str, NDArray[np.float32]] | None = None,
    **more: Any,
) -> Work:
    model = model or nn.Identity()
    fields: dict[str, Any] = {"round": 5, "rounds": 10, "steps": 3, "rate": 0.1, "patients": 8} | more
    return Work(
        model=model,
        anchor={name: tensor.detach().clone() for name, tensor in model.named_parameters()},
        layers=Layers(trained=()),
        kind=kind,
        presence=np.array(presence),
        annotated=np.array(annotated),
        down=down or {},
        **fields,
    )


def half(piece: Piece, of: Work) -> SiteHalf:
    found = piece.at_site(of)
    assert found is not None
    return found


def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    logits, label = torch.randn(2, 4, 5, 6), torch.randint(0, 3, (2, 5, 6))
    return logits, label, torch.ones(2, 3, dtype=torch.bool)


def counts(*presence: float, patients: float = 100.0) -> dict[str, NDArray[np.float32]]:
    return {
        "counts/presence": np.array(presence, np.float32),
        "counts/annotated": np.full(len(presence), patients, np.float32),
    }


def test_logits_are_adjusted_by_shares_of_patients_within_the_floor_and_not_the_backgrounds() -> None:
    logits, label, known = batch()
    recast = half(LogitAdjustment(tau=2.0), work(down=counts(50, 10, 0))).recast(cross_entropy)
    shift = 2 * torch.tensor([0, np.log(0.5), np.log(0.1), -3.0], dtype=torch.float32)
    expected = cross_entropy(logits + shift.reshape(1, 4, 1, 1), label, known)
    torch.testing.assert_close(recast(logits, label, known), expected)


def test_balanced_softmax_has_the_sites_own_prior() -> None:
    logits, label, known = batch()
    recast = half(LogitAdjustment(prior="site", floor=-20.0), work()).recast(cross_entropy)
    shift = torch.tensor([0, np.log(6 / 8), np.log(2 / 8), np.log(0.5 / 8)], dtype=torch.float32)
    expected = cross_entropy(logits + shift.reshape(1, 4, 1, 1), label, known)
    torch.testing.assert_close(recast(logits, label, known), expected)


def test_calibration_and_restriction_follow_their_formulas() -> None:
    logits, label, known = batch()
    margin = torch.tensor([8.0, 6.0, 2.0, 1.0]) ** -0.25 * 0.5
    fedlc = half(Calibrated(), work()).recast(cross_entropy)
    expected = cross_entropy(logits - margin.reshape(1, 4, 1, 1), label, known)
    torch.testing.assert_close(fedlc(logits, label, known), expected)
    scale = torch.tensor([1, 1, 1, 0.5]).reshape(1, 4, 1, 1)
    fedrs = half(Restricted(), work()).recast(cross_entropy)
    torch.testing.assert_close(fedrs(logits, label, known), cross_entropy(logits * scale, label, known))
    unannotated = half(Restricted(), work(annotated=(True, True, False))).recast(cross_entropy)
    torch.testing.assert_close(unannotated(logits, label, known), cross_entropy(logits, label, known))


def test_a_sample_weighs_as_the_classes_that_it_shows() -> None:
    logits, _, known = batch()
    label = torch.zeros(2, 5, 6, dtype=torch.long)
    label[0, 0, 0], label[0, 1, 1] = 1, 2
    recast = half(ClassBalanced(beta=0.9), work(down=counts(50, 10, 2))).recast(dice_ce)
    weights = np.array([0.1 / (1 - 0.9**n) for n in (50, 10, 2)])
    weights /= weights.mean()
    expected = dice_ce(logits, label, known) * torch.tensor([weights[:2].mean(), weights.min()]).float()
    torch.testing.assert_close(recast(logits, label, known), expected)


def test_a_class_weighs_by_its_rarity_in_both_terms() -> None:
    logits, label, known = batch()
    recast = half(Rarity(most=4.0), work(down=counts(100, 25, 1))).recast(cross_entropy)
    weights = torch.tensor([1.0, 1.0, 2.0, 4.0])
    log_probability = logits.log_softmax(1)
    true = log_probability.gather(1, label[:, None])[:, 0]
    crossed = -(true * weights[label]).mean((1, 2))
    probability = log_probability.exp()
    terms, shares = torch.zeros(2), torch.zeros(2)
    for c in (1, 2, 3):
        truth = label == c
        overlap = 2 * (probability[:, c] * truth).sum((1, 2)) / (probability[:, c] + truth).sum((1, 2))
        there = truth.flatten(1).any(1)
        terms += weights[c] * there * (1 - overlap)
        shares += weights[c] * there
    torch.testing.assert_close(recast(logits, label, known), terms / shares + crossed)
    even = half(Rarity(power=0.0), work(down=counts(100, 25, 1))).recast(cross_entropy)
    torch.testing.assert_close(even(logits, label, known), dice_ce(logits, label, known))


def test_focal_takes_the_place_of_cross_entropy() -> None:
    logits, label, known = batch()
    recast = half(Focal(gamma=1.5), work()).recast(cross_entropy)
    torch.testing.assert_close(recast(logits, label, known), dice_focal(logits, label, known, gamma=1.5))
    single = half(Focal(gamma=0.0), work(kind="multi")).recast(binary_cross_entropy)
    flat, shown = torch.randn(2, 3), torch.randint(0, 2, (2, 3))
    torch.testing.assert_close(single(flat, shown, known), binary_cross_entropy(flat, shown, known))


def test_vacant_classes_are_distilled_on_the_background_alone() -> None:
    logits, label, known = batch()
    model = Fixed(logits)
    of = work(model=model, presence=(6, 0, 0))
    teaching = half(Vacant(weight=0.5, warm_up=0.2), of)
    teaching.begin()
    same = teaching.term(logits, model(logits), label, known)
    torch.testing.assert_close(same, torch.zeros(2))
    with torch.no_grad():
        model.logits[:, 2] += 1.0
    term = teaching.term(logits, model(logits), label, known)
    local, taught = model.logits.detach().softmax(1), logits.softmax(1)
    group = [torch.stack([p[:, 2], p[:, 3], p[:, 0] + p[:, 1]], 1) for p in (local, taught)]
    divergence = (group[1] * (group[1] / group[0]).log()).sum(1)
    where = label == 0
    torch.testing.assert_close(term.detach(), 0.5 * (divergence * where).sum((1, 2)) / where.sum((1, 2)))
    assert Vacant().at_site(work(presence=(1, 1, 1))) is None
    assert Vacant().at_site(work(round=1)) is None


def test_the_ramp_rises_linearly_and_stays() -> None:
    assert [ramp(work(round=number), 0.4) for number in (1, 3, 5, 9)] == [0.0, 0.5, 1.0, 1.0]
    assert ramp(work(round=1), 0.0) == 1.0


def test_conditional_distillation_is_of_unannotated_classes_in_the_background() -> None:
    logits, label, known = batch()
    model = Fixed(logits)
    of = work(model=model, annotated=(True, True, False))
    teaching = half(Conditional(weight=1.0, first=1.0), of)
    teaching.begin()
    agreed = teaching.term(logits, model(logits), label, known)
    assert (agreed.detach().abs() < 1e-5).all()
    with torch.no_grad():
        model.logits[:, 3] -= 3.0
    assert (teaching.term(logits, model(logits), label, known) > 0.1).all()
    elsewhere = torch.ones_like(label)
    nowhere = teaching.term(logits, model(logits), elsewhere, known)
    assert (nowhere.detach().abs() < 1e-5).all()
    assert Conditional().at_site(work()) is None


def test_exclusion_is_of_unannotated_classes_where_another_is_seen() -> None:
    logits, label, known = batch()
    term = half(Exclusion(), work(annotated=(True, True, False))).term(logits, logits, label, known)
    probability, where = logits.softmax(1)[:, 3], label > 0
    torch.testing.assert_close(term, (probability * where).sum((1, 2)) / where.sum((1, 2)))


@pytest.mark.parametrize("temper", [0.0, 0.5, 1.0])
def test_a_patient_is_drawn_as_often_as_the_rarest_class_that_it_shows(temper: float) -> None:
    shows = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    weights = Rare(temper=temper, counts="site").patient_weights(shows, {})
    np.testing.assert_allclose(weights, [3.0**-temper, 3.0**-temper, 1.0, 3.0**-temper])
    own = Rare(centres=temper, counts="site")
    np.testing.assert_allclose(own.class_weights(shows, {}), [3.0**-temper, 1.0, 1.0])
    everyone = Rare(temper=temper).patient_weights(shows, counts(9, 4, 2))
    np.testing.assert_allclose(everyone, [9.0**-temper, 9.0**-temper, 4.0**-temper, 9.0**-temper])
