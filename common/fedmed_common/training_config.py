"""How a site trains: an experiment's tables ``[train]``, ``[transfer]`` and ``[privacy]``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedmed_common.fields import Model, Positive


class Training(Model):
    """One site's work in one round."""

    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    epochs: Positive | None = Field(
        None,
        description="in the place of steps: so often each training patient is drawn in a round on average, so that sites with "
        "more patients take more steps",
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 4
    learning_rate: Positive = 1e-3
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-5
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="learning rate over the whole run's rounds"
    )
    gradient_norm: Annotated[float, Field(ge=0.0)] = Field(
        12.0, description="clip each step's gradient to this norm; 0: do not clip"
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: Annotated[int, Field(ge=1, le=4096)] = Field(
        1, description="parts that a batch is cut into, whose gradients are added before the step"
    )
    checkpointing: bool = Field(
        False, description="compute activations again in the backward pass instead of keeping them"
    )
    compile: bool = Field(False, description="let torch.compile make kernels of the network")
    channels_last: bool = Field(False, description="keep the channels of weights and images side by side")
    prefetch: Annotated[int, Field(ge=0, le=64)] | None = Field(
        None,
        description="batches that threads cut ahead of the step that takes them; absent: 4 on a GPU, none on a CPU",
    )
    processes: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="processes, each with a GPU of its own, that share a site's batch"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="ddp: each process has the whole network; fsdp: each keeps its part of it"
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="CPU threads of one site; 0: all cores"
    )

    def rate_in(self, round_number: int, rounds: int) -> float:
        """The round's learning rate; cosine falls from the full rate in round 1 towards zero after the last."""
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (round_number - 1) / rounds))

    def steps_of(self, patients: int) -> int:
        """The steps of a round at a site with so many training patients: one at least."""
        if self.epochs is None:
            return self.steps
        return max(1, round(self.epochs * patients / self.batch_size))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.epochs is not None and self.steps != type(self).model_fields["steps"].default:
            raise ValueError("steps and epochs are two ways to say the same; leave one of them out")
        parts = self.accumulate * self.processes
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size ({self.batch_size}) is not a multiple of accumulate x processes "
                f"({self.accumulate} x {self.processes})"
            )
        if self.processes == 1:
            return self
        if ":" in self.device:
            raise ValueError(f"device '{self.device}' is one GPU, and processes = {self.processes} need more")
        if self.compile:
            raise ValueError("compile works with processes = 1 only")
        if self.parallel == "fsdp" and self.precision == "fp16":
            raise ValueError("precision = 'fp16' does not go with parallel = 'fsdp'; use 'bf16'")
        return self


class Lora(Model):
    """Low-rank adapters beside frozen linear layers (Hu et al. 2022, 'LoRA', ICLR)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    alpha: Positive = Field(16.0, description="the adapters' output is scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    targets: tuple[str, ...] = Field(
        (), description="patterns of layer names; empty: the attention layers that the architecture names"
    )


class Transfer(Model):
    """What training starts from, and which part of the network it changes."""

    weights: Path | None = Field(
        None,
        description="safetensors, a torch state dict, or a folder that transformers wrote; read at the coordinator's",
    )
    train: Literal["all", "head"] = Field(
        "all", description="head: only the layers that depend on the classes"
    )
    freeze: tuple[str, ...] = Field((), description="patterns of parameter names that stay as they are")
    lora: Lora | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.train == "head" and self.lora is not None:
            raise ValueError(
                "train = 'head' leaves nothing to lora, which trains the head beside its adapters: use one of them"
            )
        return self


CodecName = Literal["bf16", "int8", "top"]


class Compression(Model):
    """Changes of the model travel in fewer bytes.

    What is rounded off, or left out, is kept by who sent it and added to its next change, so that nothing of it is lost for good.
    """

    up: CodecName | None = Field(
        None,
        description="of sites' updates. bf16: half the bytes; int8: a quarter, with a scale for each channel; top: the largest "
        "numbers and their places",
    )
    down: CodecName | None = Field(
        None,
        description="of what a round changed: sites that have the last model are sent that alone, and all have the same model",
    )
    share: Annotated[float, Field(gt=0.0, le=0.5)] = Field(0.01, description="top: of all numbers")
    error_feedback: bool = Field(True, description="what was not sent is added to the next change")
    zstd: bool = Field(False, description="what is sent is compressed besides, without loss")

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.up is None and self.down is None:
            raise ValueError("neither up nor down names a codec: set one of them, or leave [compression] out")
        if self.share != type(self).model_fields["share"].default and "top" not in (self.up, self.down):
            raise ValueError("share is for 'top', which neither up nor down is")
        return self


class SecureAggregation(Model):
    """The server learns the sum over sites, and of a single site's update nothing.

    Guarantee: as long as no more than ``colluding`` sites tell the server what they know, what another site adds to the sum is
    random numbers to it; the same holds for a recipe's statistics. Assumed: the keys that a site is shown are those of the other
    sites, for which sites with certificates sign them. What the sum itself tells is not hidden: that is for ``[privacy]``.
    """

    dropouts: Annotated[int, Field(ge=0, le=255)] | None = Field(
        None, description="so many sites may be lost in a round; absent: as many as can be, fewer than half"
    )
    colluding: Annotated[int, Field(ge=0, le=255)] = Field(
        0, description="so many sites together with the server still learn nothing of another"
    )
    distributed_noise: bool = Field(
        False,
        description="each site adds its share of the noise of [privacy] and of statistics: the sum has all of it",
    )
    range: Positive = Field(
        2.0,
        description="the largest change of a number in a round; a site with a larger one refuses, which costs the round",
    )


class Privacy(Model):
    """Differential privacy of each training patient: what a site's updates tell about one of them is bounded.

    Guarantee: all that a site sends in training is (``epsilon``, ``delta``)-differentially private over the whole run.
    Neighbours are a site's training patients with and without one patient, all images of that patient together. It is the
    worst case over what else is known; it holds against the coordinator too, and needs no trust in other sites. Assumed: a
    patient is at one site, under one identifier, and in training throughout the run; the site's number of training patients,
    and how long it takes, are not secret. Metrics on validation and test patients are not covered; a site can have
    them noised, or keep them (``policy.held_out``).

    The mechanism is DP-SGD (Abadi et al. 2016, 'Deep learning with differential privacy', algorithm 1) with patients in the
    place of examples.
    """

    epsilon: Positive
    delta: Annotated[float, Field(gt=0.0, le=0.1)] = 1e-5
    clipping_norm: Positive = Field(1.0, description="C: the longest gradient that one patient contributes")
    sampling_rate: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        description="q: the chance with which each training patient takes part in a step, drawn anew each time"
    )
    noise_multiplier: Positive | None = Field(
        None,
        description="sigma: deviation of the noise in units of clipping_norm; absent: the least that keeps epsilon",
    )
    clipping_quantile: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description="C follows this quantile of gradients' lengths at the site, never above clipping_norm; absent: it is fixed",
    )
    clipping_rate: Annotated[float, Field(gt=0.0, le=2.0)] = Field(
        0.2, description="how fast it follows: C <- C exp(-rate (share within C - quantile)) in each step"
    )
    clipping_charge: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.05, description="the share of a step's privacy that the count of those within C takes"
    )
    samples: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None,
        description="of a patient in a step, whose mean is the patient's gradient; absent: train.batch_size",
    )
    patients_at_once: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None,
        description="so many patients share a backward pass; absent: one on a CPU, on a GPU what a site measures to be fastest",
    )
    spare_rounds: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        1,
        description="epsilon is enough for so many rounds more: one that a site began and a crash ended has been spent",
    )
