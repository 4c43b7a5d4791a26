"""The recipes that an experiment can name. A method is a file with its piece, and a line here."""

from __future__ import annotations

from fedmed_common.config import Experiment, RecipeChoice
from fedmed_common.errors import ConfigError
from fedmed_strategies.aggregators.bulyan import Bulyan
from fedmed_strategies.aggregators.centred_clipping import CentredClipping
from fedmed_strategies.aggregators.coordinates import Median, TrimmedMean
from fedmed_strategies.aggregators.geometric_median import GeometricMedian
from fedmed_strategies.aggregators.holders import Holders
from fedmed_strategies.buffered import Buffered
from fedmed_strategies.central_privacy import CentralPrivacy
from fedmed_strategies.corrections.dyn import Dyn
from fedmed_strategies.corrections.kept_moments import KeptMoments
from fedmed_strategies.corrections.prox import Prox
from fedmed_strategies.corrections.scaffold import Scaffold
from fedmed_strategies.corrections.sharpness import Sharpness
from fedmed_strategies.filters.krum import Krum, MultiKrum
from fedmed_strategies.filters.nearest_neighbours import NearestNeighbours
from fedmed_strategies.filters.norm_bound import NormBound
from fedmed_strategies.inputs.random_normalisation import RandomNormalisation
from fedmed_strategies.longtail.distilled import Conditional, Exclusion, Vacant
from fedmed_strategies.longtail.logits import Calibrated, LogitAdjustment, Restricted
from fedmed_strategies.longtail.rare import Rare
from fedmed_strategies.longtail.weighted import ClassBalanced, Focal, Rarity
from fedmed_strategies.personal.layers import OwnHead, OwnNorms, OwnStatistics, Represented
from fedmed_strategies.personal.networks import Ditto, FineTuned, MeanRegularised
from fedmed_strategies.recipe import Recipe, resolve
from fedmed_strategies.server_optimizers.adaptive import Adagrad, Adam, Yogi
from fedmed_strategies.server_optimizers.momentum import Momentum
from fedmed_strategies.stages.head_retraining import HeadRetraining
from fedmed_strategies.stages.operating_point import OperatingPoint
from fedmed_strategies.statistics.counts import Counts
from fedmed_strategies.statistics.survey import Intensities, Landmarks, Shapes, Volumes
from fedmed_strategies.validity import refuse
from fedmed_strategies.weights.contribution import Contribution
from fedmed_strategies.weights.disco import Disco
from fedmed_strategies.weights.fair import Fair
from fedmed_strategies.weights.fixed import Equal
from fedmed_strategies.weights.gap import Gap
from fedmed_strategies.weights.nova import Nova
from fedmed_strategies.weights.pid import Pid

RECIPES: dict[str, Recipe] = {
    "fedavg": Recipe(),
    "equal": Recipe(weights=Equal()),
    # the server's step
    "fedavgm": Recipe(server_optimizer=Momentum(momentum=0.9)),
    "fedadagrad": Recipe(server_optimizer=Adagrad()),
    "fedadam": Recipe(server_optimizer=Adam()),
    "fedyogi": Recipe(server_optimizer=Yogi()),
    # sites of unequal speed
    "fedbuff": Recipe(buffered=Buffered()),
    # drift
    "fedprox": Recipe(corrections=(Prox(),)),
    "scaffold": Recipe(weights=Equal(), corrections=(Scaffold(),)),
    "fednova": Recipe(weights=Nova()),
    "feddyn": Recipe(weights=Equal(), corrections=(Dyn(),)),
    "fedsam": Recipe(corrections=(Sharpness(),)),
    "kept_moments": Recipe(corrections=(KeptMoments(),)),
    # what differs between scanners
    "fedbn": Recipe(personal=OwnNorms()),
    "silobn": Recipe(personal=OwnStatistics()),
    "fedrdn": Recipe(inputs=RandomNormalisation()),
    "fedrdn_sam": Recipe(inputs=RandomNormalisation(), corrections=(Sharpness(),)),
    # what stays at a site
    "fedper": Recipe(personal=OwnHead()),
    "fedrep": Recipe(personal=Represented()),
    "ditto": Recipe(personal=Ditto()),
    "mr_mtl": Recipe(weights=Equal(), personal=MeanRegularised()),
    "fine_tuned": Recipe(personal=FineTuned()),
    # rare classes, and classes that some sites lack
    "focal": Recipe(losses=(Focal(),)),
    "class_balanced": Recipe(losses=(ClassBalanced(),)),
    "rarity": Recipe(losses=(Rarity(),)),
    "logit_adjustment": Recipe(losses=(LogitAdjustment(),)),
    "balanced_softmax": Recipe(losses=(LogitAdjustment(prior="site", floor=-20.0),)),
    "fedlc": Recipe(losses=(Calibrated(),)),
    "fedrs": Recipe(losses=(Restricted(),)),
    "fedvls": Recipe(losses=(Vacant(),)),
    "condist": Recipe(losses=(Conditional(),)),
    "exclusion": Recipe(losses=(Exclusion(),)),
    "rare": Recipe(sampler=Rare()),
    "holders": Recipe(aggregator=Holders(), statistics=(Counts(),)),
    "longtail": Recipe(
        losses=(Rarity(),),
        sampler=Rare(),
        corrections=(KeptMoments(),),
        statistics=(Counts(),),
        aggregator=Holders(),
        server_optimizer=Momentum(momentum=0.5),
        stages=(OperatingPoint(),),
    ),
    "head_retraining": Recipe(stages=(HeadRetraining(),)),
    "operating_point": Recipe(stages=(OperatingPoint(),)),
    # how much a site counts
    "feddisco": Recipe(weights=Disco()),
    "feddg_ga": Recipe(weights=Gap()),
    "qffl": Recipe(weights=Fair()),
    "fedce": Recipe(weights=Contribution()),
    "fedpid": Recipe(weights=Pid()),
    # hostile sites
    "median": Recipe(aggregator=Median()),
    "trimmed_mean": Recipe(aggregator=TrimmedMean()),
    "krum": Recipe(filters=(Krum(),)),
    "multi_krum": Recipe(filters=(MultiKrum(),)),
    "bulyan": Recipe(aggregator=Bulyan()),
    "rfa": Recipe(aggregator=GeometricMedian()),
    "centred_clipping": Recipe(aggregator=CentredClipping()),
    "norm_bound": Recipe(filters=(NormBound(),)),
    "nnm": Recipe(filters=(NearestNeighbours(),)),
    "nnm_trimmed_mean": Recipe(filters=(NearestNeighbours(),), aggregator=TrimmedMean()),
    # before there is anything to train
    "survey": Recipe(statistics=(Shapes(), Intensities(), Volumes(), Landmarks())),
    # privacy of sites
    "central_privacy": Recipe(central_privacy=CentralPrivacy()),
}
"""By name. Where each comes from, its pieces say."""


def recipe_of(experiment: Experiment) -> Recipe:
    """The recipe of an experiment, which allows how the experiment trains.

    Raises:
        ConfigError: names the field and the fix.
    """
    recipe = resolve(experiment.recipe, RECIPES, secure=experiment.secure_aggregation is not None)
    refuse(recipe, experiment)
    return recipe


def plain_of(choice: RecipeChoice) -> RecipeChoice:
    """FedAvg with the same losses, sampler and inputs, and the statistics that these need: what of a recipe's gain is not due
    to how it federates.

    Raises:
        ConfigError: a name is unknown; or no recipe is what is local in one of them.
    """
    recipe = resolve(choice, RECIPES)
    kept = [name for chosen in (choice.name, *choice.also) for name in _local_of(chosen)]
    plain = RecipeChoice(name="fedavg", also=tuple(dict.fromkeys(kept)))
    gathered = resolve(plain, RECIPES).gathered()
    pieces = (*recipe.losses, recipe.sampler, recipe.inputs, *gathered)
    local = {piece.name for piece in pieces if piece is not None}
    settings = {name: values for name, values in choice.settings.items() if name in local}
    return plain.model_copy(update={"settings": settings})


def _local_of(name: str) -> tuple[str, ...]:
    """The recipes that have what is local in this one, and nothing else."""
    recipe = RECIPES.get(name, Recipe())
    if _is_local(recipe):
        return (name,)
    alone = [Recipe(losses=(loss,)) for loss in recipe.losses]
    alone += [Recipe(sampler=recipe.sampler), Recipe(inputs=recipe.inputs)]
    found = {
        each: other
        for other, preset in RECIPES.items()
        for each in range(len(alone))
        if preset == alone[each]
    }
    lost = [one for each, one in enumerate(alone) if one != Recipe() and each not in found]
    if lost:
        raise ConfigError(
            f"no recipe is '{next(lost[0].pieces()).name}' alone, as '{name}' has it",
            field="recipe",
            fix="name the losses and the sampler by their own recipes",
        )
    return tuple(found[each] for each, one in enumerate(alone) if one != Recipe())


def _is_local(recipe: Recipe) -> bool:
    """Whether it changes nothing but losses, sampler and inputs, and changes one of these."""
    local = Recipe(losses=recipe.losses, sampler=recipe.sampler, inputs=recipe.inputs)
    return recipe == local and recipe != Recipe()
