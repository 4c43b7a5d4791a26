"""The two files that people write: the experiment (what to train, on what, how) and a site's file (whose data, what it permits).

Both are frozen and validated on construction; ``loading`` reads them from TOML. The tables of a site's file lie in
``site_config``; ``[task]`` in ``task_config``; ``[train]``, ``[transfer]`` and ``[privacy]`` in ``training_config``;
``[simulation.partition]`` in ``partition_config``.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fedmed_common.catalogue import ARCHITECTURES, AnyArchitecture, Plan, UNet
from fedmed_common.fields import Fraction, Model, Name, Positive, Triple
from fedmed_common.metrics import SCORES
from fedmed_common.partition_config import Partition
from fedmed_common.site_config import Policy, Site, SiteData
from fedmed_common.task_config import CRF, LossSettings, Task
from fedmed_common.training_config import Compression, Lora, Privacy, SecureAggregation, Training, Transfer

__all__ = [
    "CRF",
    "Compression",
    "Data",
    "Experiment",
    "Federation",
    "Fusion",
    "Intensity",
    "Lora",
    "LossSettings",
    "Partition",
    "Policy",
    "Privacy",
    "RecipeChoice",
    "Simulation",
    "Site",
    "SiteData",
    "Splits",
    "Task",
    "Tracking",
    "Training",
    "Transfer",
]


_DECILES = 9


class Intensity(Model):
    """How voxel values become network input.

    zscore: minus mean, over standard deviation of the case's foreground. percentile: the range ``low..high`` percent to 0..1.
    window: the range ``low..high`` in stored units (HU in CT) to 0..1. scale: 0..255 to 0..1. landmarks: the 1st percentile of
    the foreground to 0, its deciles to ``landmarks``, the 99th to 1, and linearly between (Nyul and Udupa 1999).
    """

    kind: Literal["zscore", "percentile", "window", "scale", "landmarks"] = "zscore"
    low: float = 0.5
    high: float = 99.5
    landmarks: tuple[tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...], ...] | None = Field(
        None, description="of kind landmarks: for each channel, where its nine deciles lie between 0 and 1"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be less than high ({self.high})")
        if self.kind == "percentile" and not 0 <= self.low < self.high <= 100:
            raise ValueError("percentiles lie between 0 and 100")
        if (self.kind == "landmarks") != (self.landmarks is not None):
            raise ValueError(
                "kind = 'landmarks' and landmarks go together; a survey and 'fedmed plan' find them"
            )
        for scale in self.landmarks or ():
            if len(scale) != _DECILES or any(one >= other for one, other in pairwise(scale)):
                raise ValueError(f"landmarks needs {_DECILES} rising numbers for each channel")
        return self


class Fusion(Model):
    """How the modalities of a case become channels: one each, or all in one by wavelets (``data.channels = 1``)."""

    kind: Literal["channels", "wavelet"] = "channels"
    wavelet: Literal["haar", "db2", "db4", "bior2.2"] = "db2"
    levels: Annotated[int, Field(ge=1, le=6)] = 2


class Splits(Model):
    """Share of a site's patients held out. The rest trains. A patient is always on one side."""

    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    test: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2

    @model_validator(mode="after")
    def _leaves_training_patients(self) -> Self:
        if self.validation + self.test >= 1.0:
            raise ValueError("validation + test must be less than 1, or no patient is left to train on")
        return self


class Data(Model):
    """How every site prepares its cases."""

    channels: Annotated[int, Field(ge=1, le=16)] = 1
    spacing_mm: Triple | None = Field(
        None, description="resample to this voxel size; absent keeps each case's own"
    )
    patch: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        description="voxels per axis, two or three numbers"
    )
    intensity: Intensity = Intensity()
    modalities: tuple[Name, ...] = Field(
        (),
        max_length=16,
        description="of cases with several series, in the order of channels; none: a case is one series",
    )
    intensities: dict[Name, Intensity] = Field(
        {}, description="of single modalities, in the place of intensity"
    )
    fusion: Fusion = Fusion()
    modality_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="in training, how often a modality of a patch is left out; one always stays"
    )
    bias_correction: bool | tuple[Name, ...] = Field(
        False,
        description="divide out the slow change of brightness across an MR image, by N4; or the modalities of which",
    )
    crop_to_foreground: bool = Field(False, description="cut away the empty surroundings before caching")
    splits: Splits = Splits()
    augmentation: Literal["none", "light", "standard"] = "light"
    foreground_share: Fraction = Field(
        0.66,
        description="share of patches centred on a foreground voxel, its class drawn evenly; "
        "classification: of samples that show a class, drawn evenly",
    )

    @model_validator(mode="after")
    def _modalities_and_channels(self) -> Self:
        known = self.modalities
        if len(set(known)) != len(known):
            raise ValueError("modalities: one is named twice")
        for name in self.intensities:
            if name not in known:
                raise ValueError(f"intensities.{name} is no modality; known: {', '.join(known) or 'none'}")
        for name in () if isinstance(self.bias_correction, bool) else self.bias_correction:
            if name not in known:
                raise ValueError(
                    f"bias_correction: '{name}' is no modality; known: {', '.join(known) or 'none'}"
                )
        if self.fusion.kind == "wavelet" and len(known) < 2:
            raise ValueError("fusion.kind = 'wavelet' joins modalities: name two or more")
        if self.modality_dropout and (len(known) < 2 or self.fusion.kind == "wavelet"):
            raise ValueError(
                "modality_dropout leaves channels out that are modalities: name two or more, not fused"
            )
        wanted = 1 if self.fusion.kind == "wavelet" else len(known)
        if known and self.channels != wanted:
            raise ValueError(
                f"channels is {self.channels}, but {len(known)} modalities make {wanted}: set channels = {wanted}"
            )
        return self

    def intensity_of(self, modality: str) -> Intensity:
        """How the values of a modality become network input."""
        return self.intensities.get(modality, self.intensity)


class Federation(Model):
    """Who takes part, and when a round counts."""

    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="share of the sites drawn in each round"
    )
    sites_per_round: Annotated[int, Field(ge=1)] | None = Field(
        None, description="in the place of fraction: so many sites are drawn in each round"
    )
    evaluation_sites: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="so many sites measure the model after a round, always the same ones; absent: all. The test is at all",
    )
    minimum_sites: Annotated[int, Field(ge=1)] = 1
    quorum: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="share of a round's sites that must answer"
    )
    retries: Annotated[int, Field(ge=0, le=100)] = 2
    deadline_seconds: Positive = 3600.0
    roll_call_seconds: Positive = Field(
        300.0,
        description="how long a deployed run waits at its start for the sites that it was launched with",
    )
    evaluate_every: Annotated[int, Field(ge=1)] = Field(
        1, description="rounds between evaluations; the last round is always evaluated"
    )
    best: Name = Field(
        "dice",
        description="validation metric whose mean over classes picks the best round; equal values: the later round; "
        "not given: the task's first, 'dice' or 'auroc'",
    )
    update_norm_limit: Positive = Field(1e4, description="the gate refuses a larger update")

    @model_validator(mode="after")
    def _one_number_of_sites(self) -> Self:
        if self.sites_per_round is None:
            return self
        if self.fraction != 1.0:
            raise ValueError(
                "fraction and sites_per_round are two ways to say the same; leave one of them out"
            )
        if self.sites_per_round < self.minimum_sites:
            raise ValueError(
                f"sites_per_round ({self.sites_per_round}) is less than minimum_sites ({self.minimum_sites}), which are to "
                "give a usable update"
            )
        return self


class RecipeChoice(Model):
    """The strategy: a recipe by name, others that are combined with it, and settings of their pieces by the pieces' names."""

    name: Name = "fedavg"
    also: tuple[Name, ...] = Field((), description="further recipes, each of which adds its pieces")
    settings: dict[Name, dict[Name, bool | int | float | str | tuple[float, ...] | None]] = Field(
        default_factory=dict, description="as settings.prox.mu = 0.1"
    )

    @field_validator("settings")
    @classmethod
    def _printable(cls, settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Words in it are shown to people who decide: none begins a line of its own or steers a terminal."""
        for values in settings.values():
            for name, value in values.items():
                if isinstance(value, str) and (len(value) > 200 or not value.isprintable()):
                    raise ValueError(f"'{name}' is not a short word that can be printed")
        return settings

    @property
    def label(self) -> str:
        """All of its names, as ``fedprox + rare``."""
        return " + ".join((self.name, *self.also))


class Tracking(Model):
    """Where MLflow keeps the run. Absent: SQLite in the runs folder."""

    uri: str | None = None
    experiment: str | None = None


class Simulation(Model):
    """The federation that stands in for hospitals on one machine. Never sent to a site."""

    federation: Path | None = Field(
        None, description="folder whose subfolders hold a site.toml each, as 'fedmed phantom' writes"
    )
    sites: tuple[Site, ...] = ()
    partition: Partition | None = None
    gpus_per_site: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="of a site at work on the engines process and ray: 0.5 puts two on a GPU"
    )
    regions: Annotated[int, Field(ge=0)] = Field(
        0,
        description="the sites, in the order of their names, are dealt to so many regions, which answer the centre for them; "
        "0: there are none",
    )
    pace_spread: Annotated[float, Field(ge=0.0, le=3.0)] = Field(
        0.0,
        description="how unequal sites' speeds are: deviation of the logarithm of a step's time; 0: all are equally fast",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.federation is None) == (not self.sites):
            raise ValueError(
                "give either 'federation' (a folder) or 'sites' (a list), not both and not neither"
            )
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names):
            raise ValueError("two sites have the same name")
        return self


class Experiment(Model):
    """One TOML file: what to train, on what, how."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    rounds: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        description="0: a survey, which asks for what its recipe's statistics say and trains nothing"
    )
    task: Task
    data: Data
    model: AnyArchitecture = UNet()
    transfer: Transfer = Transfer()
    train: Training = Training()
    privacy: Privacy | None = None
    secure_aggregation: SecureAggregation | None = None
    compression: Compression | None = None
    recipe: RecipeChoice = RecipeChoice()
    federation: Federation = Field(Federation(), validate_default=True)
    tracking: Tracking = Tracking()
    simulation: Simulation | None = None

    @field_validator("federation")
    @classmethod
    def _best_of_its_task(cls, federation: Federation, info: ValidationInfo) -> Federation:
        """Where the experiment names no metric, the task's headline picks the best round."""
        task: Task | None = info.data.get("task")
        scores = task.scores if task is not None else ()
        if not scores or "best" in federation.model_fields_set:
            return federation
        return federation.model_copy(update={"best": scores[0].name})

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.data.patch) != self.task.dimensions:
            raise ValueError(
                f"data.patch has {len(self.data.patch)} numbers, but task.dimensions is {self.task.dimensions}"
            )
        self._check_scales()
        self.model.check(self.plan)
        self._check_batch_norm()
        self._can_be_transferred()
        tasks = {task for kind in ARCHITECTURES.values() for task in kind.tasks}
        if self.task.name in tasks - self.model.tasks:
            raise ValueError(
                f"model.name = '{self.model.name}' is for {' and '.join(sorted(self.model.tasks))}; "
                f"task.name is '{self.task.name}': 'fedmed models list --task {self.task.name}' lists what suits it"
            )
        self._check_best()
        self._check_privacy()
        if self.compression is not None and self.compression.up and self.secure_aggregation is not None:
            raise ValueError(
                "compression.up: under secure_aggregation updates are summed as whole numbers of one range, which codecs have "
                "not; use one of them (compression.down goes with both)"
            )
        if self.simulation is not None and self.simulation.partition is not None:
            self.simulation.partition.check_classes(self.task)
        if self.simulation is not None and self.simulation.regions:
            self._check_regions(self.simulation)
        if self.federation.evaluate_every > max(1, self.rounds):
            raise ValueError(
                f"federation.evaluate_every ({self.federation.evaluate_every}) is more than rounds ({self.rounds})"
            )
        return self

    def _check_regions(self, simulation: Simulation) -> None:
        """A region's answer is a mean over its sites: what needs each site's own is not to be had."""
        federation = self.federation
        in_the_way = {
            "privacy": self.privacy is not None,
            "secure_aggregation": self.secure_aggregation is not None,
            "compression": self.compression is not None,
            "federation.fraction": federation.fraction < 1.0,
            "federation.sites_per_round": federation.sites_per_round is not None,
            "federation.evaluation_sites": federation.evaluation_sites is not None,
            "simulation.pace_spread": simulation.pace_spread > 0,
        }
        for name, is_set in in_the_way.items():
            if is_set:
                raise ValueError(
                    f"simulation.regions: a region answers for all of its sites at once, and {name} is about each site; leave "
                    "one of them out"
                )
        if simulation.regions < max(2, federation.minimum_sites):
            raise ValueError(
                f"simulation.regions: {simulation.regions} are too few for the centre, which counts regions as its sites; it "
                f"needs {max(2, federation.minimum_sites)}"
            )

    def _check_scales(self) -> None:
        """Landmarks are of each channel; of modalities, each has its own."""
        data = self.data
        rows = 1 if data.modalities else data.channels
        for name, intensity in {"intensity": data.intensity, **data.intensities}.items():
            if intensity.landmarks is not None and len(intensity.landmarks) != rows:
                raise ValueError(
                    f"data.{name}: landmarks has {len(intensity.landmarks)} rows, and {rows} are needed"
                )

    def _check_batch_norm(self) -> None:
        at_once = self.train.batch_size // (self.train.accumulate * self.train.processes)
        if self.model.norm == "batch" and at_once == 1 and self.model.measures_one_voxel(self.plan):
            raise ValueError(
                f"model.norm = 'batch': of data.patch {list(self.data.patch)} one of the norms of '{self.model.label}' sees one "
                "voxel, which of one patch at a time is nothing to measure; use another norm, or a train.batch_size of at least "
                "2 x accumulate x processes"
            )

    def _check_best(self) -> None:
        best = self.federation.best
        known = [score.name for score in SCORES.get(self.task.name, ()) if score.picks]
        if not known or best in {score.name for score in self.task.scores if score.picks}:
            return
        if best in known:
            need = (
                "task.surface_metrics = true"
                if self.task.name == "segmentation"
                else "task.labels = 'single'"
            )
            raise ValueError(f"federation.best = '{best}' needs {need}")
        raise ValueError(
            f"federation.best = '{best}' is no metric of task.name = '{self.task.name}'; known: {', '.join(known)}"
        )

    def _check_privacy(self) -> None:
        if self.privacy is None:
            return
        if self.model.norm == "batch":
            raise ValueError(
                "model.norm = 'batch' measures patients outside the noise; with [privacy] use 'group' or 'instance'"
            )
        if self.train.processes > 1 or self.train.precision == "fp16":
            raise ValueError(
                "with [privacy] a site trains in one process, in 'fp32' or 'bf16': set train.processes = 1 and train.precision"
            )

    def _can_be_transferred(self) -> None:
        name = self.model.label
        if self.transfer.train == "head" and not self.model.head:
            raise ValueError(
                f"transfer.train = 'head': it is not known which layers of '{name}' depend on the classes; name those that stay "
                "as they are in transfer.freeze"
            )
        lora = self.transfer.lora
        if lora is not None and not (lora.targets or self.model.attention):
            raise ValueError(
                f"transfer.lora: '{name}' has no attention layers that are known; name layers in transfer.lora.targets"
            )

    @property
    def plan(self) -> Plan:
        """What its network is built for."""
        background = self.task.name == "segmentation"
        return Plan(
            dimensions=self.task.dimensions,
            in_channels=self.data.channels,
            outputs=len(self.task.classes) + background,
            patch=self.data.patch,
            spacing_mm=self.data.spacing_mm,
        )

    @property
    def evaluation_rounds(self) -> tuple[int, ...]:
        """The rounds after which the model is measured: every so many, and the last."""
        every = self.federation.evaluate_every
        if not self.rounds:
            return ()
        return tuple(dict.fromkeys((*range(every, self.rounds + 1, every), self.rounds)))

    def order_text(self) -> str:
        """What sites are told of the experiment, as canonical JSON: no folder and no tracking address of this machine."""
        return self.model_dump_json(exclude={"simulation": True, "tracking": True, "transfer": {"weights"}})
