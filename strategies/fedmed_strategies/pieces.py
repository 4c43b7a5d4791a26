"""What strategies are made of: the kinds of pieces, and what each of them may see and do.

A piece is a frozen settings class in a file of its own, with both its halves: what a site does with it and what the server does.
A recipe is a choice of pieces (:mod:`fedmed_strategies.recipe`). Everything a piece keeps between rounds lies outside of it, as
named arrays: the server's in the run's checkpoint, a site's in the site's own folder. Names of arrays that a piece keeps, sends
or is sent begin with its own, as ``scaffold/control/…``, so that pieces never meet by accident.

What crosses the wire is declared: ``sums`` are arrays that only their sum over sites matters of, so that they can be noised and
summed in secret; ``scalars`` are numbers that the server sees of each site, in the clear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedmed_common.fields import Model
from fedmed_common.params import Parameters

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fedmed_common.tasks.losses import Loss as SampleLoss

Arrays = Parameters
"""Named float32 arrays."""

Memory = dict[str, NDArray[Any]]
"""Named arrays that are kept from round to round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What pieces know of a network: names of its float arrays.

    ``trained``: those that training changes, in the model's order. ``norms``: of normalisation layers, parameters and running
    statistics. ``head``: of the layers that depend on the classes. ``rows``: of those, the arrays with one row for each output,
    and along which axis.
    """

    trained: tuple[str, ...]
    norms: frozenset[str] = frozenset()
    head: frozenset[str] = frozenset()
    rows: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the server knows of a site: its training patients, and of each class annotated there how many show it.

    A count of -1 hides one that is positive and small. ``counts``: what a class statistic said, ``(K,)``, where one was asked
    for."""

    name: str
    patients: int
    presence: Mapping[str, int] = field(default_factory=dict)
    counts: NDArray[np.float64] | None = None

    def holds(self, classes: Sequence[str]) -> NDArray[np.float64]:
        """By class the number of its patients who show it, never negative; a hidden count is 1."""
        if self.counts is not None:
            return np.maximum(self.counts, 0.0)
        return np.array([abs(self.presence.get(name, 0)) for name in classes], np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One round as the server's pieces see it.

    ``sites``: all that can train; ``background``: output 0 is no class; ``rate``: the learning rate at the sites; ``image``: the
    shape of what the network sees, ``(channels, *patch)``.
    """

    classes: tuple[str, ...]
    background: bool
    layers: Layers
    sites: tuple[Site, ...]
    round: int
    rounds: int
    rate: float = 1.0
    seed: int = 0
    image: tuple[int, ...] = ()

    @property
    def outputs(self) -> int:
        """Channels of the network's logits."""
        return len(self.classes) + self.background


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One site's part in a round: its update, and what its recipe's pieces sent beside it. ``loss``: its mean training
    loss, where the site says it; ``staleness``: steps that the server took while it trained."""

    site: Site
    delta: Arrays
    sums: Arrays = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    loss: float | None = None
    staleness: int = 0


@dataclass(slots=True, kw_only=True)
class Work:
    """A site's training in one round, as its pieces see it.

    ``model``: what is trained, on its device. ``kind``: a segmentation, or a classification with several labels or one.
    ``anchor``: by name the tensors of the round's global model that training changes. ``presence``: ``(K,)`` training patients
    who show each class, ``annotated``: ``(K,)``; both stay at the site. ``down``: what the server sent for the pieces,
    ``memory``: what they kept at the site. ``rate``: the learning rate, ``momentum``: of plain SGD, else 0. ``measure``: the
    mean loss of the model as it is on some of the training patients, always the same ones of a round."""

    model: nn.Module
    anchor: Mapping[str, Tensor]
    layers: Layers
    kind: Literal["segmentation", "multi", "single"]
    presence: NDArray[np.int64]
    annotated: NDArray[np.bool_]
    patients: int
    round: int
    rounds: int
    steps: int
    rate: float
    momentum: float = 0.0
    down: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    memory: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    measure: Callable[[], float] | None = None

    @property
    def background(self) -> bool:
        """Whether output 0 is no class."""
        return self.kind == "segmentation"

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters being trained, by name."""
        named = self.model.named_parameters(remove_duplicate=False)
        return {name: parameter for name, parameter in named if parameter.requires_grad}


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a piece leaves after a site's training: what goes to the server, and what stays for its next round."""

    sums: Arrays = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)


class SiteHalf:
    """What a piece does during a site's training in one round. Nothing, unless the piece says otherwise."""

    teaches: ClassVar[bool] = False
    """Whether ``term`` is to be called."""
    perturbs: ClassVar[bool] = False
    """Whether gradients are taken at another point, between ``perturb`` and ``restore``."""

    def begin(self) -> None:
        """Before the first step, with the model as it starts."""

    def take(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the first step, with the optimizer that is to take the steps, as it begins."""

    def recast(self, loss: SampleLoss) -> SampleLoss:
        """The loss of a sample as this piece would have it."""
        return loss

    def term(self, image: Tensor, outputs: Any, target: Tensor, annotated: Tensor) -> Tensor:
        """A term for each sample ``(B,)``, added to its loss."""
        raise NotImplementedError

    def perturb(self) -> None:
        """Move the parameters to where the step's gradient is to be taken."""

    def restore(self) -> None:
        """Move them back."""

    def gradients(self, step: int) -> None:
        """Change the gradients of a step, from 1 on, once those of the loss are there and clipped."""

    def finish(self, delta: Arrays) -> Left:
        """After the last step. ``delta``: what training changed."""
        return Left()


class Piece(Model):
    """The base of all pieces: settings as fields, and what the validity table has to know of it."""

    name: ClassVar[str]
    source: ClassVar[str] = ""
    """Where it was published."""
    sees_each_update: ClassVar[bool] = False
    """Whether the server needs every site's update by itself."""
    uses_presence: ClassVar[bool] = False
    """What ``looks_at_presence`` says, unless the settings matter."""
    measures: ClassVar[bool] = False
    """Whether a site measures its loss for it, beyond training."""
    beyond_steps: ClassVar[str] = ""
    """What a site computes for it besides the steps that every strategy takes."""
    handles_parameters: ClassVar[bool] = False
    """Whether its site's half handles the network's parameters, which have to be whole in its process then."""
    scalars: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """The numbers that a site sends in the clear, and between what they lie."""

    @property
    def statistics(self) -> tuple[StatisticPiece, ...]:
        """What it needs to know of all sites' patients before training begins."""
        return ()

    def looks_at_presence(self) -> bool:
        """Whether a site's training depends on which of its patients show what, beyond their own losses."""
        return self.uses_presence

    def sums(self, template: Arrays) -> Arrays:
        """Arrays of the shapes of the sums that a site sends with its update, by name. ``template``: as the update's."""
        return {}

    def down(self, memory: Memory, scene: Scene) -> Arrays:
        """What all sites are sent beside the parameters."""
        return {}

    def down_to(self, site: str, memory: Memory, scene: Scene) -> Arrays:
        """What one site is sent besides."""
        return {}

    def at_site(self, work: Work) -> SiteHalf | None:
        """Its part in a site's training; None where it has none."""
        return None

    def settle(self, done: Done) -> tuple[Arrays, Memory]:
        """After the server's step: the new parameters, and what is kept."""
        return done.parameters, {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What is left of an answer when its update has been added: who it was, its weight of all weights' sum, its scalars."""

    site: Site
    share: float
    scalars: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A round after the server's step, as each piece may settle it.

    ``parameters``: the new ones; ``step``: the combined update; ``sums``: of the pieces over the answers; ``answers``: without
    their updates; ``memory``: what is kept so far."""

    parameters: Arrays
    step: Arrays
    sums: Arrays
    answers: Sequence[Reported]
    scene: Scene
    memory: Memory


class Loss(Piece):
    """Changes what a site's training makes small. Losses add up: each recasts what the one before it left."""


class Correction(Piece):
    """Changes the steps of a site's training against drift."""

    handles_parameters: ClassVar[bool] = True
    only_plain_sgd: ClassVar[bool] = False
    """Whether its formula holds for SGD without momentum only."""


class Input(Piece):
    """Changes the images that a network sees at a site, in training and in evaluation."""

    def change(self, image: Tensor, arrays: Mapping[str, NDArray[Any]], *, training: bool) -> Tensor:
        """The image ``(B, C, *S)`` as the network is to see it. ``arrays``: what the server sent."""
        raise NotImplementedError


class Sampler(Piece):
    """Which training patients a site draws more often, and which classes patches are centred on."""

    uses_presence: ClassVar[bool] = True

    def patient_weights(
        self, shows: NDArray[np.bool_], down: Mapping[str, NDArray[Any]]
    ) -> NDArray[np.float64]:
        """Relative chances of patients ``(P,)``. ``shows``: ``(P, K)``; ``down``: what the server sent."""
        return np.ones(len(shows))

    def class_weights(
        self, shows: NDArray[np.bool_], down: Mapping[str, NDArray[Any]]
    ) -> NDArray[np.float64]:
        """Relative chances of the classes ``(K,)`` to be in the centre of a patch, of those that a case shows."""
        return np.ones(shows.shape[1])


class Personal(Piece):
    """What stays at a site: parts of the network, or a whole network beside or in the place of the global one."""

    handles_parameters: ClassVar[bool] = True

    def keeps(self, layers: Layers) -> frozenset[str]:
        """The arrays that are never sent: each site has its own."""
        return frozenset()

    mode: ClassVar[Literal["layers", "beside", "instead", "tuned"]] = "layers"
    """layers: some arrays are the site's own. beside: a second network is trained at the site and measured. instead: the
    site trains its own, and sends how it differs from the global one. tuned: the global one is trained further before it
    is measured."""


class StatisticPiece(Piece):
    """Something about a site's training patients that is a sum over them; see :mod:`fedmed_strategies.statistics.base`."""

    of_each_site: ClassVar[bool] = False
    """Whether the server keeps every site's, and not only their sum."""
    told_to_sites: ClassVar[bool] = True
    """Whether the sum is sent to the sites; where not, the piece that asks for it sends what it makes of every site's."""


class Stage(Piece):
    """Something done with the global model when it is about to be measured, apart from training."""

    from_share: float = 0.0
    """It begins when so much of the rounds is done."""

    def begins(self, rounds: int) -> int:
        """The first round after which it is done."""
        return math.ceil(round(self.from_share * rounds, 9))

    @property
    def statistic(self) -> StatisticPiece:
        """What it asks of the sites, with the model that it is to change."""
        raise NotImplementedError

    def check(self, model: torch.nn.Module, layers: Layers, image: tuple[int, ...]) -> None:
        """Refuse a network that it cannot change. ``image``: as in :class:`Scene`.

        Raises:
            ConfigError: names the field and the fix.
        """

    def apply(
        self, parameters: Arrays, sums: Arrays, scene: Scene, model: torch.nn.Module
    ) -> tuple[Arrays, Memory]:
        """The changed parameters, and how their predictions are decided on: see ``Decision``.

        ``model``: the network, whose own values do not matter.
        """
        raise NotImplementedError


def add_up(total: Memory, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Add the arrays to those of the same names, in place of these; a name that is new begins with what is added."""
    for name, array in arrays.items():
        total[name] = total[name] + array if name in total else array


def own(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Memory:
    """The arrays below ``prefix``, by what follows it."""
    start = prefix + "/"
    return {name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)}


def under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Memory:
    """The arrays with ``prefix`` before their names."""
    return {f"{prefix}/{name}": array for name, array in arrays.items()}
