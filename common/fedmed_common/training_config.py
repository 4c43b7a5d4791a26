"""How a site trains and predicts: an experiment's tables ``[train]``, ``[task.loss_settings]`` and ``[task.crf]``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedmed_common.fields import Model, Positive

LOSS_SETTINGS: dict[str, tuple[str, ...]] = {
    "focal": ("gamma",),
    "dice_focal": ("gamma",),
    "tversky": ("alpha", "beta"),
    "dice_boundary": ("boundary_weight",),
    "border_ce": ("border_weight", "border_sigma"),
}
"""What each loss may be told; a loss that is not named here has nothing to set."""

COUPLED_LOSSES = frozenset({"batch_dice", "batch_dice_ce"})
"""Those in which a sample's loss depends on its batch: none for what needs each patient's own gradient."""


class LossSettings(Model):
    """Parameters of a loss; one that is absent is what the loss's paper says."""

    gamma: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    alpha: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    beta: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    boundary_weight: Positive | None = None
    border_weight: Annotated[float, Field(ge=0.0)] | None = None
    border_sigma: Positive | None = None

    def given(self) -> dict[str, float]:
        """Those that the experiment gives, by name."""
        return self.model_dump(exclude_none=True)

    def check(self, loss: str) -> None:
        """Refuse a setting that the loss does not know.

        Raises:
            ValueError: names the field and the loss.
        """
        known = LOSS_SETTINGS.get(loss, ())
        for name in self.given():
            if name not in known:
                can = f"it knows {', '.join(known)}" if known else "it has nothing to set"
                raise ValueError(f"loss_settings.{name} is nothing that loss = '{loss}' knows; {can}")


class CRF(Model):
    """A conditional random field over the class probabilities of a segmentation (Kraehenbuehl and Koltun 2011, NIPS).

    Defaults are those of DeepLab's published script (Chen et al. 2015, ICLR, section 4.1, searches around them). Distances are in
    voxels: one number, or one for each axis.
    """

    iterations: Annotated[int, Field(ge=1, le=100)] = Field(10, description="of the mean field")
    bilateral_weight: Annotated[float, Field(ge=0.0)] = Field(
        4.0, description="of messages between voxels that are near and alike; 0: none"
    )
    bilateral_sigma: Positive | tuple[Positive, ...] = Field(49.0, description="how near, in voxels")
    intensity_sigma: Positive = Field(
        5.0, description="how alike, of 255 grey values over the range of the case's channel"
    )
    smoothness_weight: Annotated[float, Field(ge=0.0)] = Field(
        3.0, description="of messages between voxels that are near; 0: none"
    )
    smoothness_sigma: Positive | tuple[Positive, ...] = Field(3.0, description="how near, in voxels")

    def check(self, dimensions: int) -> None:
        """Refuse deviations that are not one for each axis.

        Raises:
            ValueError: names the field.
        """
        for name in ("bilateral_sigma", "smoothness_sigma"):
            sigma = getattr(self, name)
            if isinstance(sigma, tuple) and len(sigma) != dimensions:
                raise ValueError(f"crf.{name} has {len(sigma)} numbers, but dimensions is {dimensions}")


class Training(Model):
    """One site's work in one round."""

    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 20
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

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
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
