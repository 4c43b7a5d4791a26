"""A recipe at a site: what its pieces do in an order's training, what they keep, and which network is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedmed_client.data.cohort import Cohort
from fedmed_client.data.samplers import Sampler
from fedmed_client.engine.copying import on_device
from fedmed_client.engine.team import ALONE, Team
from fedmed_client.keeping import Keeping, Memory
from fedmed_client.train import Course, Update, train
from fedmed_client.workbench import Bench, SiteHome, branch, seed_for
from fedmed_common import wire
from fedmed_common.params import Parameters
from fedmed_common.secure.circle import Party
from fedmed_common.secure.fixed_point import Layout
from fedmed_strategies import secure
from fedmed_strategies.pieces import Layers, Left, SiteHalf, Work, add_up, own, under
from fedmed_strategies.presets import recipe_of
from fedmed_strategies.recipe import Recipe
from fedmed_strategies.server_half import shared, sums_of

_OWN = "own"
_MEASURED_BATCHES = 8
_SECOND_SEED = 0x0D17

_NORMALISED: dict[str, dict[str, NDArray[Any]]] = {}
"""By cohort, so that its images are read through once and not with every order."""

Train = Callable[[Parameters, Sequence[SiteHalf], np.random.SeedSequence], Update]
"""(what to start from, pieces at work, seed) -> what training changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a site's training gives: its update without what stays, what goes beside it, and what is kept."""

    update: Update
    left: Left


@dataclass(slots=True, kw_only=True)
class Method:
    """An order's recipe at this site."""

    bench: Bench
    recipe: Recipe
    layers: Layers
    order: wire.Order
    cohort: Cohort
    sampler: Sampler
    memory: Memory

    @classmethod
    def of(cls, home: SiteHome, bench: Bench, order: wire.Order, cohort: Cohort, sampler: Sampler) -> Method:
        """The order's, with what the site has kept.

        Raises:
            ConfigError: the recipe is not known here, or does not allow how the experiment trains.
            CheckpointError: what the site kept is gone.
        """
        recipe = recipe_of(bench.experiment)
        return cls(
            bench=bench,
            recipe=recipe,
            layers=bench.layers,
            order=order,
            cohort=cohort,
            sampler=sampler if recipe.sampler is None else sampler.weighed(recipe.sampler, order.down),
            memory=Keeping(home.folder, order.run).before(order.round),
        )

    def train(self, site: str, train: Train) -> Result:
        """Train once, or twice where the recipe has a second network."""
        personal, seed = self.recipe.personal, self._seed(site)
        mode = personal.mode if personal is not None else ""
        work = self._work(site)
        halves = [
            half
            for piece in self.recipe.pieces()
            if not (mode == "beside" and piece is personal) and (half := piece.at_site(work)) is not None
        ]
        start = self._start(keep_own=mode in {"layers", "instead"})
        with changed_inputs(self.bench.model, self.recipe, self._arrays()):
            update = train(start, halves, seed)
            whole = self._against_global(update.delta, start)
            delta = {name: whole[name] for name in shared(self.recipe, self.layers)}
            left = self._left(halves, delta)
            kept, waited = dict(left.memory), update.waited
            if personal is not None and mode == "layers":
                kept |= under(_OWN, {name: self._value(name) for name in personal.keeps(self.layers)})
            elif mode == "instead":
                kept |= under(_OWN, self._values())
            elif personal is not None and mode == "beside":
                half = personal.at_site(self._work(site))
                second = [] if half is None else [half]
                waited += train(self._start(keep_own=True), second, branch(seed, _SECOND_SEED)).waited
                kept |= under(_OWN, self._values())
        return Result(
            update=Update(delta=delta, loss=update.loss, waited=waited),
            left=Left(sums=left.sums, scalars=left.scalars, memory=kept),
        )

    def _work(self, site: str) -> Work:
        experiment, device = self.bench.experiment, self.bench.device
        settings, count = experiment.train, self.sampler.patients
        presence, annotated = _presence(self.cohort)
        personal = self.recipe.personal
        anchor = self._start(keep_own=personal is not None and personal.mode == "layers")
        return Work(
            model=self.bench.model,
            anchor=_Tensors(anchor, self.layers.trained, device),
            layers=self.layers,
            kind="segmentation" if experiment.task.name == "segmentation" else experiment.task.labels,
            presence=presence,
            annotated=annotated,
            patients=count,
            round=self.order.round,
            rounds=experiment.rounds,
            steps=settings.steps_of(count),
            rate=settings.rate_in(self.order.round, experiment.rounds),
            momentum=settings.momentum if settings.optimizer == "sgd" else 0.0,
            down=self.order.down,
            memory=self.memory,
            measure=lambda: self._loss(site),
        )

    def _left(self, halves: Sequence[SiteHalf], delta: Parameters) -> Left:
        """What all pieces leave, the sums in the order in which the server expects them."""
        sums, scalars, memory = dict[str, NDArray[Any]](), dict[str, float](), Memory()
        for half in halves:
            left = half.finish(delta)
            sums |= left.sums
            scalars |= left.scalars
            memory |= left.memory
        expected = sums_of(self.recipe, delta)
        return Left(
            sums={name: np.asarray(sums[name], np.float32) for name in expected},
            scalars=scalars,
            memory=memory,
        )

    def for_sum(
        self, party: Party, site: str, delta: Parameters, sums: Parameters, told: Mapping[str, int]
    ) -> tuple[Layout, dict[str, NDArray[np.float64]]]:
        """What the site adds to the round's secure sum, and how it is laid out. ``told``: by class how many patients it says that
        show it; a negative number is a hidden one."""
        experiment = self.bench.experiment
        settings = experiment.secure_aggregation
        assert settings is not None  # noqa: S101
        presence = np.array([abs(told.get(name, 0)) for name in self.cohort.classes], np.int64)
        rate = experiment.train.rate_in(max(1, self.order.round), experiment.rounds)
        secure.check_ranges(self.recipe, settings, delta, sums, rate)
        layout = secure.layout(
            self.recipe,
            settings,
            delta,
            sums,
            self.layers.rows,
            len(presence),
            rate,
            len(party.names),
        )
        background = int(experiment.task.name == "segmentation")
        arrays = secure.of_site(self.recipe, party, site, delta, sums, self.layers.rows, presence, background)
        return layout, arrays

    def _start(self, *, keep_own: bool) -> Parameters:
        return with_own(self.order.parameters, self.memory) if keep_own else self.order.parameters

    def _against_global(self, delta: Parameters, start: Parameters) -> Parameters:
        """What training changed as seen from the global model, which it may not have begun from."""
        if start is self.order.parameters:
            return delta
        return {
            name: array + (start[name] - self.order.parameters[name]) if name in start else array
            for name, array in delta.items()
        }

    def _values(self) -> Parameters:
        return {name: self._value(name) for name in self.layers.trained}

    def _value(self, name: str) -> NDArray[np.float32]:
        value: NDArray[np.float32] = self.bench.model.state_dict()[name].detach().float().cpu().numpy().copy()
        return value

    def _seed(self, site: str) -> np.random.SeedSequence:
        return seed_for(self.bench.experiment.seed, self.order.round, site)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {**self.order.down, **own_normalisation(self.cohort)} if self.recipe.inputs is not None else {}

    def _loss(self, site: str) -> float:
        """The mean loss of the network as it is, on the same batches of this site's training patients in every round."""
        rng = np.random.default_rng(seed_for(self.bench.experiment.seed, 0, site))
        model, training = self.bench.model, self.bench.model.training
        model.eval()
        losses = []
        try:
            with torch.no_grad():
                for _ in range(_MEASURED_BATCHES):
                    image, target, annotated = on_device(self.sampler.batch(rng), self.bench.device)
                    losses.append(float(self.bench.task.objective(model, image, target, annotated)))
        finally:
            model.train(training)
        return float(np.mean(losses))


class _Tensors(Mapping[str, torch.Tensor]):
    """Arrays as tensors, which are made when a piece first looks at one of them: most never do."""

    def __init__(self, arrays: Parameters, names: Sequence[str], device: torch.device) -> None:
        self._arrays, self._names, self._device = arrays, names, device

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(np.array(self._arrays[name])).to(self._device) for name in self._names}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def in_full(method: Method, on_step: Callable[[int], None], team: Team = ALONE) -> Train:
    """Training without privacy, as :meth:`Method.train` calls it. ``team``: as of ``train.train``."""

    def train_it(start: Parameters, halves: Sequence[SiteHalf], seed: np.random.SeedSequence) -> Update:
        course = Course(round=method.order.round, seed=seed, halves=halves)
        return train(method.bench, method.sampler, start, course, on_step, team)

    return train_it


def with_own(parameters: Parameters, memory: Mapping[str, NDArray[Any]]) -> Parameters:
    """The parameters with what the site has of its own."""
    kept = own(memory, _OWN)
    return {name: kept.get(name, array) for name, array in parameters.items()} if kept else parameters


@contextmanager
def changed_inputs(
    model: torch.nn.Module, recipe: Recipe, arrays: Mapping[str, NDArray[Any]]
) -> Iterator[None]:
    """The network sees images as the recipe has them, in training and in evaluation."""
    change = recipe.inputs
    if change is None:
        yield
        return

    def before(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        image, *rest = arguments
        return (change.change(image, arrays, training=module.training), *rest)

    handle = model.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def own_normalisation(cohort: Cohort) -> dict[str, NDArray[Any]]:
    """This site's own channel statistics, of its training patients, or of all where nobody trains. They stay here."""
    from fedmed_client.statistics import patients_of
    from fedmed_strategies.inputs.random_normalisation import RandomNormalisation, normalisation
    from fedmed_strategies.statistics.base import Sizes
    from fedmed_strategies.statistics.channels import Channels

    if cohort.manifest_hash in _NORMALISED:
        return _NORMALISED[cohort.manifest_hash]
    statistic, channels = Channels(), cohort.cases[0].image.shape[0]
    sizes = Sizes(classes=len(cohort.classes), outputs=0, channels=channels)
    total = statistic.zeros(sizes)
    for patient in patients_of(cohort.of("train") or cohort.cases):
        add_up(total, statistic.of_patient(patient, sizes))
    mean, deviation = normalisation(total)
    found = under(RandomNormalisation.name, {"mean": mean, "deviation": deviation})
    return _NORMALISED.setdefault(cohort.manifest_hash, found)


def _presence(cohort: Cohort) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    counts = cohort.presence("train")
    return (
        np.array([counts.get(name, 0) for name in cohort.classes], np.int64),
        np.array([name in counts for name in cohort.classes], bool),
    )
