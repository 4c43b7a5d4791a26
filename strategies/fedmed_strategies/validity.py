"""What cannot be combined, and why: the table that a recipe is held against when it is made, and an experiment before it runs.

Each rule is a condition and a sentence. A rule about pieces alone needs only the recipe; one about training needs the experiment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.params import is_statistic
from fedmed_strategies.corrections.dyn import Dyn
from fedmed_strategies.filters.norm_bound import NormBound
from fedmed_strategies.flower import Flower
from fedmed_strategies.personal.layers import OwnHead
from fedmed_strategies.pieces import Piece
from fedmed_strategies.server_optimizers.momentum import Momentum
from fedmed_strategies.statistics.survey import Survey

if TYPE_CHECKING:
    from torch import nn

    from fedmed_strategies.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceRule:
    """Pieces that do not go together: which of the recipe's stand in the way (none: it is fine), and why."""

    what: str
    offends: Callable[[Recipe], list[Piece]]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRule:
    """A recipe and a setting that do not go together. ``field``: of the experiment; ``fix``: what to do."""

    what: str
    offends: Callable[[Recipe, Experiment], list[Piece]]
    field: str
    why: str
    fix: str


def _each_update(recipe: Recipe) -> list[Piece]:
    return [piece for piece in recipe.pieces() if piece.sees_each_update and not isinstance(piece, NormBound)]


def _all(condition: bool, pieces: list[Piece]) -> list[Piece]:
    return pieces if condition else []


def _surveys(recipe: Recipe) -> list[Piece]:
    return [statistic for statistic in recipe.statistics if isinstance(statistic, Survey)]


def _buffer(recipe: Recipe) -> list[Piece]:
    return [] if recipe.buffered is None else [recipe.buffered]


def _needs_each_site(recipe: Recipe) -> list[Piece]:
    """Pieces for which a region's mean over its sites will not do."""
    weights = [] if recipe.weights.name == "by_patients" else [recipe.weights]
    aggregator = [] if recipe.aggregator.name == "mean" else [recipe.aggregator]
    privacy = [] if recipe.central_privacy is None else [recipe.central_privacy]
    template = {"x": np.zeros(1, np.float32)}
    telling = [piece for piece in recipe.pieces() if piece.scalars or piece.sums(template)]
    statistics = [one for one in recipe.asked() if not one.told_to_sites or one.epsilon is not None]
    return [*weights, *recipe.filters, *aggregator, *privacy, *_buffer(recipe), *telling, *statistics]


def _servers_own(recipe: Recipe) -> list[Piece]:
    weights = [] if recipe.weights.name == "by_patients" else [recipe.weights]
    optimizer = [] if recipe.server_optimizer == Momentum() else [recipe.server_optimizer]
    corrections = [c for c in recipe.corrections if c.name in {"scaffold", "dyn"}]
    return [*weights, *recipe.filters, *optimizer, *corrections, *_buffer(recipe)]


PIECE_RULES: tuple[PieceRule, ...] = (
    PieceRule(
        what="a strategy of Flower's x what the server does otherwise",
        offends=lambda r: _all(isinstance(r.aggregator, Flower), _servers_own(r)),
        why="a strategy of Flower's does all of the server's part; only pieces that work at the sites go with it",
    ),
    PieceRule(
        what="secure aggregation x a rule that compares updates",
        offends=lambda r: _all(r.secure, _each_update(r)),
        why="under secure aggregation the server sees the sum of updates only, and this needs each of them",
    ),
    PieceRule(
        what="secure aggregation x statistics of each site",
        offends=lambda r: _all(r.secure, [s for s in r.gathered() if not s.told_to_sites]),
        why="under secure aggregation nobody sees a site's own statistics, and this sends them to all",
    ),
    PieceRule(
        what="secure aggregation x weights that are not known beforehand",
        offends=lambda r: _all(r.secure and r.weights.name not in {"by_patients", "equal"}, [r.weights]),
        why="under secure aggregation a site weighs its update itself, by its patients or like all others",
    ),
    PieceRule(
        what="secure aggregation x what the server does to each update",
        offends=lambda r: _all(
            r.secure, [*r.filters, *([] if r.aggregator.name in {"mean", "holders"} else [r.aggregator])]
        ),
        why="under secure aggregation the server sees the sum of updates only",
    ),
    PieceRule(
        what="secure aggregation x a clipping norm that follows the updates",
        offends=lambda r: _all(
            r.secure and r.central_privacy is not None and r.central_privacy.adapts > 0,
            [r.central_privacy] if r.central_privacy is not None else [],
        ),
        why="the share of updates that were clipped is not known under secure aggregation; set adapts = 0",
    ),
    PieceRule(
        what="central privacy x a rule that is no weighted mean",
        offends=lambda r: _all(
            r.central_privacy is not None,
            [*r.filters, *([] if r.aggregator.name == "mean" else [r.aggregator])],
        ),
        why="by how much one site can move the result is known of a weighted mean only, and with it how much noise is enough",
    ),
    PieceRule(
        what="central privacy x weights that answers change",
        offends=lambda r: _all(
            r.central_privacy is not None and r.weights.name not in {"by_patients", "equal"}, [r.weights]
        ),
        why="these weights depend on what the sites answer, which the noise on the mean does not hide",
    ),
    PieceRule(
        what="central privacy x sums beside the update",
        offends=lambda r: _all(
            r.central_privacy is not None, [c for c in r.corrections if c.name == "scaffold"]
        ),
        why="what sites send beside their updates would leave the server without noise: it is not clipped together with them",
    ),
    PieceRule(
        what="FedDyn x unequal weights",
        offends=lambda r: _all(not r.weights.equal, [c for c in r.corrections if isinstance(c, Dyn)]),
        why="its server's term is right for a plain mean only; combine it with weights 'equal'",
    ),
    PieceRule(
        what="FedDyn x a robust rule or another server optimizer",
        offends=lambda r: _all(
            bool(r.filters) or r.aggregator.name != "mean" or r.server_optimizer != Momentum(),
            [c for c in r.corrections if isinstance(c, Dyn)],
        ),
        why="its server's term takes the place of the server's step; nothing else may change the mean",
    ),
    PieceRule(
        what="Bulyan, the median or the trimmed mean x weights",
        offends=lambda r: _all(
            r.aggregator.name in {"bulyan", "median", "trimmed_mean"}
            and r.weights.name not in {"by_patients", "equal"},
            [r.weights],
        ),
        why="this rule counts all sites alike, so that weights would do nothing",
    ),
    PieceRule(
        what="holder rows x a head of each site's own",
        offends=lambda r: _all(
            isinstance(r.personal, OwnHead), [r.aggregator] if r.aggregator.name == "holders" else []
        ),
        why="where every site keeps its own head, there are no rows to average",
    ),
    PieceRule(
        what="a network or layers of each site's own x stages",
        offends=lambda r: _all(r.personal is not None, list(r.stages)),
        why="what is measured is not the global network alone, and the stage looks at that one and changes it",
    ),
    PieceRule(
        what="a robust rule or central privacy x stages",
        offends=lambda r: _all(
            r.central_privacy is not None
            or any(p.robust if isinstance(p, Flower) else p.sees_each_update for p in r.pieces()),
            list(r.stages),
        ),
        why="one site's sums would change what is published, past the rule that keeps its update from doing so",
    ),
    PieceRule(
        what="a second network x corrections",
        offends=lambda r: _all(
            r.personal is not None and r.personal.mode == "beside" and bool(r.corrections),
            list(r.corrections),
        ),
        why="it would be unclear which of the two networks is corrected",
    ),
    PieceRule(
        what="SCAFFOLD and FedDyn x a network in the place of the global one",
        offends=lambda r: _all(
            r.personal is not None and r.personal.mode == "instead",
            [c for c in r.corrections if c.name in {"scaffold", "dyn"}],
        ),
        why="their formulas are for training that begins at the global model",
    ),
    PieceRule(
        what="losses and samplers x a second training",
        offends=lambda r: _all(
            r.personal is not None and r.personal.mode in {"beside", "tuned"},
            [*r.losses, *([] if r.sampler is None else [r.sampler])],
        ),
        why="the site's own network is trained with the task's loss and sampler alone, and that one is measured",
    ),
    PieceRule(
        what="a buffer x secure aggregation",
        offends=lambda r: _all(r.secure, _buffer(r)),
        why="a secure sum is over sites that train together from one version of the model, and here each trains by itself",
    ),
    PieceRule(
        what="a buffer x a rule that compares updates",
        offends=lambda r: _all(r.buffered is not None, _each_update(r)),
        why="it compares updates, and with a buffer these begin from different versions of the model",
    ),
    PieceRule(
        what="a buffer x weights that compare losses",
        offends=lambda r: _all(r.buffered is not None and r.weights.measures, [r.weights]),
        why="it compares sites by their losses of one model, and with a buffer each site has another version",
    ),
    PieceRule(
        what="a buffer x SCAFFOLD and FedDyn",
        offends=lambda r: _all(
            r.buffered is not None, [c for c in r.corrections if c.name in {"scaffold", "dyn"}]
        ),
        why="its server's term is for answers of one round, and with a buffer they are of several",
    ),
    PieceRule(
        what="a buffer x a network or layers of each site's own",
        offends=lambda r: _all(
            r.buffered is not None and r.personal is not None and r.personal.mode != "tuned",
            [] if r.personal is None else [r.personal],
        ),
        why="what a site has of its own would be measured, and fitted to the shared model, in the middle of its training",
    ),
    PieceRule(
        what="a buffer x central privacy",
        offends=lambda r: _all(r.central_privacy is not None, _buffer(r)),
        why="how long a site takes decides in which step its update counts, and how much, which the noise does not hide",
    ),
    PieceRule(
        what="FedCE x another step than the mean",
        offends=lambda r: _all(
            r.weights.name == "contribution"
            and (bool(r.filters) or r.aggregator.name != "mean" or r.server_optimizer != Momentum()),
            [r.weights],
        ),
        why="sites work out from the global model what the round would have been without them, which holds for the mean alone",
    ),
)


def _presence(recipe: Recipe, experiment: Experiment) -> list[Piece]:
    return _all(experiment.privacy is not None, [p for p in recipe.pieces() if p.looks_at_presence()])


def _silent_statistics(recipe: Recipe, experiment: Experiment) -> list[Piece]:
    return _all(experiment.privacy is not None, [s for s in recipe.asked() if s.epsilon is None])


def _in_the_clear(recipe: Recipe, experiment: Experiment) -> list[Piece]:
    measured = [
        p for p in recipe.pieces() if p.measures or (isinstance(p, Flower) and "QFedAvg" in p.classes)
    ]
    return _all(experiment.privacy is not None, measured)


def _plain_sgd(recipe: Recipe, experiment: Experiment) -> list[Piece]:
    train = experiment.train
    plain = train.optimizer == "sgd" and train.momentum == 0
    return _all(not plain, [c for c in recipe.corrections if c.only_plain_sgd])


def _shares_noise(experiment: Experiment) -> bool:
    settings = experiment.secure_aggregation
    return experiment.privacy is not None and settings is not None and settings.distributed_noise


def _asks_some(experiment: Experiment) -> bool:
    """Whether not every site trains in each round."""
    federation = experiment.federation
    return federation.fraction < 1.0 or federation.sites_per_round is not None


def _asks_few(experiment: Experiment) -> bool:
    """Whether fewer than half of the sites may train in a round."""
    federation = experiment.federation
    return federation.fraction < 0.5 or federation.sites_per_round is not None


def _own_layers(recipe: Recipe, _experiment: Experiment) -> list[Piece]:
    personal = recipe.personal
    return [personal] if personal is not None and personal.mode == "layers" else []


EXPERIMENT_RULES: tuple[ExperimentRule, ...] = (
    ExperimentRule(
        what="SCAFFOLD x Adam or momentum",
        offends=_plain_sgd,
        field="train.optimizer",
        why="its formula divides by the learning rate of plain SGD, which Adam and momentum do not keep to",
        fix="set train.optimizer = 'sgd' and train.momentum = 0",
    ),
    ExperimentRule(
        what="q-FFL x Adam",
        offends=lambda r, e: _all(
            e.train.optimizer != "sgd",
            [w for w in (r.weights,) if w.name == "fair" and getattr(w, "q", 0.0) > 0],
        ),
        field="train.optimizer",
        why="it divides by the square of an update's length over the learning rate, which Adam makes so large that nothing moves",
        fix="set train.optimizer = 'sgd'",
    ),
    ExperimentRule(
        what="SCAFFOLD and FedDyn x few sites a round",
        offends=lambda r, e: _all(_asks_few(e), [c for c in r.corrections if c.name in {"scaffold", "dyn"}]),
        field="federation.fraction",
        why="what a site keeps for it grows stale where fewer than half of the sites train in a round",
        fix="set federation.fraction to 0.5 or more, and leave federation.sites_per_round out",
    ),
    ExperimentRule(
        what="FedCE x some sites a round",
        offends=lambda r, e: _all(_asks_some(e) and r.weights.name == "contribution", [r.weights]),
        field="federation.fraction",
        why="a site that was not drawn cannot tell one round's change of the global model from several",
        fix="set federation.fraction = 1.0, and leave federation.sites_per_round out",
    ),
    ExperimentRule(
        what="a buffer x some sites a round",
        offends=lambda r, e: _all(_asks_some(e), _buffer(r)),
        field="federation",
        why="it has no rounds of which a share of the sites could be part",
        fix="say how many sites train at once by recipe.settings.buffered.concurrency",
    ),
    ExperimentRule(
        what="a buffer x more updates than it holds",
        offends=lambda r, e: _all(
            r.buffered is not None
            and r.buffered.buffer is not None
            and e.federation.minimum_sites > r.buffered.buffer,
            _buffer(r),
        ),
        field="federation.minimum_sites",
        why="so many usable updates are asked of a step, which is taken with fewer",
        fix="make recipe.settings.buffered.buffer at least as large",
    ),
    ExperimentRule(
        what="operating points x what predictions are made of besides",
        offends=lambda r, e: _all(
            e.task.crf is not None or e.model.prompted,
            [stage for stage in r.stages if stage.name == "operating_point"],
        ),
        field="recipe",
        why="it is chosen on the network's own probabilities, which a conditional random field or prompts change afterwards",
        fix="leave task.crf out, and take a network without prompts",
    ),
    ExperimentRule(
        what="layers of each site's own x some sites a round",
        offends=lambda r, e: _all(_asks_some(e), _own_layers(r, e)),
        field="federation.fraction",
        why="the layers of a site that was not drawn no longer fit the ones that are shared",
        fix="set federation.fraction = 1.0, and leave federation.sites_per_round out",
    ),
    ExperimentRule(
        what="privacy x what looks at who shows what",
        offends=_presence,
        field="recipe",
        why="with [privacy] a patient may change the training of others by nothing but a clipped gradient, and this looks at "
        "which classes a site's patients show; a label-aware sampler also makes chances unequal, which the accounting forbids",
        fix="leave it out; 'class_balanced' or 'logit_adjustment' with noised counts do without",
    ),
    ExperimentRule(
        what="privacy x inputs by a site's own patients",
        offends=lambda r, e: _all(e.privacy is not None, [r.inputs] if r.inputs is not None else []),
        field="recipe",
        why="this normalises each image by all training patients of the site, so that what is measured on others would tell of "
        "a patient without a charge",
        fix="leave it out",
    ),
    ExperimentRule(
        what="privacy x holder rows in secret",
        offends=lambda r, e: _all(
            e.privacy is not None and r.secure and r.aggregator.name == "holders", [r.aggregator]
        ),
        field="recipe",
        why="a site's counts would be in the secure sum without noise, and the row of a class that few sites hold would have the "
        "noise of these few alone",
        fix="leave it out, or leave secure_aggregation out",
    ),
    ExperimentRule(
        what="privacy x statistics without noise",
        offends=_silent_statistics,
        field="recipe.settings",
        why="with [privacy] what a site says of its patients needs noise, too",
        fix="give its epsilon, as recipe.settings.counts.epsilon = 1.0",
    ),
    ExperimentRule(
        what="privacy x losses in the clear",
        offends=_in_the_clear,
        field="recipe",
        why="with [privacy] no loss leaves a site, and these weights need it",
        fix="use 'by_patients' or 'equal' weights",
    ),
    ExperimentRule(
        what="privacy x a second training of the site",
        offends=lambda r, e: _all(
            e.privacy is not None and r.personal is not None and r.personal.mode in {"beside", "tuned"},
            [r.personal] if r.personal is not None else [],
        ),
        field="recipe",
        why="a site's own network would be trained on its patients without an entry in its ledger",
        fix="use 'mr_mtl', whose one network is trained privately",
    ),
    ExperimentRule(
        what="privacy x sharpness",
        offends=lambda r, e: _all(e.privacy is not None, [c for c in r.corrections if c.name == "sharpness"]),
        field="recipe",
        why="its first pass takes a gradient of patients that is neither clipped nor noised",
        fix="leave it out",
    ),
    ExperimentRule(
        what="a network in parts x what handles its parameters",
        offends=lambda r, e: _all(
            e.train.processes > 1 and e.train.parallel == "fsdp",
            [piece for piece in r.pieces() if piece.handles_parameters],
        ),
        field="train.parallel",
        why="at a site it handles the network's parameters, of which each process has a part only",
        fix="set train.parallel = 'ddp'",
    ),
    ExperimentRule(
        what="stages and moments x classification",
        offends=lambda r, e: _all(e.task.name != "segmentation", list(r.stages)),
        field="recipe",
        why="it looks at voxels, and the task has none",
        fix="leave it out",
    ),
    ExperimentRule(
        what="a loss in the place of the task's x a task's loss that was chosen",
        offends=lambda r, e: _all(
            e.task.loss != ("dice_ce" if e.task.name == "segmentation" else "cross_entropy")
            or (e.task.name != "segmentation" and any(p.name == "rarity" for p in r.losses)),
            [p for p in r.losses if p.name in {"focal", "rarity"}],
        ),
        field="task.loss",
        why="it takes the place of Dice and cross entropy of a segmentation, or of a classification's cross entropy",
        fix="leave task.loss out; 'rarity' is for segmentation only",
    ),
    ExperimentRule(
        what="shared noise x several steps",
        offends=lambda r, e: _all(
            _shares_noise(e)
            and (e.train.steps != 1 or e.train.epochs is not None or e.train.optimizer != "sgd"),
            [r.weights],
        ),
        field="secure_aggregation.distributed_noise",
        why="a site's second step begins where its own part of the noise took the first, and that part alone hides too little",
        fix="set train.steps = 1 and train.optimizer = 'sgd', or leave distributed_noise out",
    ),
    ExperimentRule(
        what="shared noise x a clipping norm of each site's own",
        offends=lambda r, e: _all(
            _shares_noise(e) and e.privacy is not None and e.privacy.clipping_quantile is not None,
            [r.weights],
        ),
        field="privacy.clipping_quantile",
        why="sites whose clipping norms differ add noise of different sizes, and the count of lengths would not be shared",
        fix="leave it out, or leave distributed_noise out",
    ),
    ExperimentRule(
        what="shared noise x weights other than by patients",
        offends=lambda r, e: _all(_shares_noise(e) and r.weights.name != "by_patients", [r.weights]),
        field="secure_aggregation.distributed_noise",
        why="with other weights a patient of a small site would move the sum by more than the noise is for",
        fix="use 'by_patients'",
    ),
    ExperimentRule(
        what="shared noise x what changes gradients or stays at the site",
        offends=lambda r, e: _all(
            _shares_noise(e), [*r.corrections, *([] if r.personal is None else [r.personal])]
        ),
        field="secure_aggregation.distributed_noise",
        why="what it keeps at the site, or sends besides, would have a part of the noise alone",
        fix="leave it out",
    ),
    ExperimentRule(
        what="FedNova x equal steps",
        offends=lambda r, e: _all(e.train.epochs is None and r.weights.name == "nova", [r.weights]),
        field="train.steps",
        why="all sites take the same number of steps, so that it would be FedAvg by another name",
        fix="set train.epochs in the place of train.steps",
    ),
    ExperimentRule(
        what="a survey x rounds of training",
        offends=lambda r, e: _all(e.rounds > 0, _surveys(r)),
        field="rounds",
        why="it is asked where nothing is trained",
        fix="set rounds = 0, and train with another experiment",
    ),
    ExperimentRule(
        what="no rounds x no survey",
        offends=lambda r, e: _all(e.rounds == 0 and not _surveys(r), [r.aggregator]),
        field="rounds",
        why="without rounds it has nothing to do",
        fix="set rounds to 1 or more, or recipe.name = 'survey'",
    ),
    ExperimentRule(
        what="a survey x images as training sees them",
        offends=lambda r, e: _all(
            e.data.spacing_mm is not None or e.data.intensity.kind not in {"window", "scale"}, _surveys(r)
        ),
        field="data",
        why="it looks at images as they are, with intensities between two bounds",
        fix="leave data.spacing_mm out; set data.intensity.kind = 'window' with low and high (of CT -1024, 3071), or 'scale'",
    ),
    ExperimentRule(
        what="several modalities x what looks at channels alike",
        offends=lambda r, e: _all(
            bool(e.data.modalities), [*_surveys(r), *([] if r.inputs is None else [r.inputs])]
        ),
        field="data.modalities",
        why="it takes a missing modality for an image of zeros, and all channels for of one unit",
        fix="leave the piece out; survey each modality by itself",
    ),
    ExperimentRule(
        what="a survey x patients who are held out",
        offends=lambda r, e: _all(e.data.splits.validation + e.data.splits.test > 0, _surveys(r)),
        field="data.splits",
        why="who is held out changes with each patient who comes, and the difference of two answers would tell of few",
        fix="set data.splits = { validation = 0.0, test = 0.0 }: it is of all patients, and trains on none",
    ),
    ExperimentRule(
        what="a survey x classes of whole images",
        offends=lambda r, e: _all(e.task.name != "segmentation", _surveys(r)),
        field="task.name",
        why="it measures the volumes of segmented classes",
        fix="set task.name = 'segmentation'",
    ),
    ExperimentRule(
        what="regions x what needs each site's answer",
        offends=lambda r, e: _all(e.simulation is not None and e.simulation.regions > 0, _needs_each_site(r)),
        field="simulation.regions",
        why="a region answers with the mean of its sites by their patients, and this needs what each of them says",
        fix="leave simulation.regions out, or the piece",
    ),
)


def refuse_pieces(recipe: Recipe) -> None:
    """Refuse a recipe whose pieces cannot be combined.

    Raises:
        ValueError: names the piece and says why.
    """
    for rule in PIECE_RULES:
        if offending := rule.offends(recipe):
            raise ValueError(f"'{offending[0].name}' cannot be in it: {rule.why}")


def refuse(recipe: Recipe, experiment: Experiment) -> None:
    """Refuse an experiment that trains in a way that its recipe does not allow.

    Raises:
        ConfigError: names the field, the piece, why, and the fix.
    """
    for rule in EXPERIMENT_RULES:
        if offending := rule.offends(recipe, experiment):
            raise ConfigError(f"'{offending[0].name}': {rule.why}", field=rule.field, fix=rule.fix)


def refuse_network(recipe: Recipe, experiment: Experiment, model: nn.Module) -> None:
    """Refuse a network that a stage of the recipe cannot change, or of which sites send what the recipe cannot protect.

    Raises:
        ConfigError: names the field and the fix.
    """
    from fedmed_strategies.layers import layers_of
    from fedmed_strategies.server_half import shared

    plan = experiment.plan
    layers = layers_of(model, experiment.model.head, plan.outputs)
    for stage in recipe.stages:
        stage.check(model, layers, (plan.in_channels, *plan.patch))
    sent = shared(recipe, layers)
    if recipe.secure and any(is_statistic(name) for name in sent):
        raise ConfigError(
            "'secure_aggregation': batch norms' running variances are pooled with each site's means, and a sum is not enough",
            field="model.norm",
            fix="use 'group' or 'instance', or keep the norms at the sites with 'fedbn' or 'silobn'",
        )
    if recipe.central_privacy is not None and any(is_statistic(name) for name in sent):
        raise ConfigError(
            "'central_privacy': running statistics of batch norms have no length, and would leave without noise",
            field="model.norm",
            fix="use 'group' or 'instance', or keep the norms at the sites with 'fedbn' or 'silobn'",
        )


def warnings(recipe: Recipe, experiment: Experiment) -> list[str]:
    """What may be combined, and should be known."""
    found = []
    if isinstance(recipe.personal, OwnHead):
        found.append(
            "every site keeps its own head: a site can never predict a class that its patients do not show"
        )
    if recipe.personal is not None and recipe.personal.mode == "layers":
        found.append(
            "layers that stay at the sites are not in the global model: at a new site it must be trained before it is used"
        )
    if recipe.aggregator.name == "holders" and recipe.secure:
        found.append("a class that one site holds alone has a sum of one site")
    if recipe.buffered is not None and experiment.federation.evaluate_every == 1:
        found.append(
            "whenever the model is measured, hospitals that are still at work are waited for: with federation.evaluate_every = 1 "
            "a buffer saves no time"
        )
    return found
