"""What is to be predicted, by which loss, and how: the tables ``[task]``, ``[task.loss_settings]`` and ``[task.crf]``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedmed_common.fields import Model, Name, Positive
from fedmed_common.metrics import Score, scores_of
from fedmed_common.site_config import UNLABELLED_NAME

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

_LOSS_OF = {"classification": "cross_entropy"}


class LossSettings(Model):
    """Parameters of a loss; one that is absent is what the loss's paper says."""

    gamma: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    alpha: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    beta: Annotated[float, Field(gt=0.0, le=10.0)] | None = None
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

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.bilateral_weight and not self.smoothness_weight:
            raise ValueError(
                "crf.bilateral_weight and crf.smoothness_weight are both 0, which changes nothing; leave [task.crf] out"
            )
        return self

    def check(self, dimensions: int) -> None:
        """Refuse deviations that are not one for each axis.

        Raises:
            ValueError: names the field.
        """
        for name in ("bilateral_sigma", "smoothness_sigma"):
            sigma = getattr(self, name)
            if isinstance(sigma, tuple) and len(sigma) != dimensions:
                raise ValueError(f"crf.{name} has {len(sigma)} numbers, but dimensions is {dimensions}")


class Task(Model):
    """What is to be predicted. Class 0, the background of a segmentation, is implied and never named."""

    name: Name = "segmentation"
    classes: tuple[Name, ...] = Field(min_length=1, max_length=254)
    dimensions: Literal[2, 3] = 3
    labels: Literal["multi", "single"] = Field(
        "multi",
        description="classification: several classes, or none, may be present; or always exactly one",
    )
    loss: Name = Field(default_factory=lambda given: _LOSS_OF.get(given.get("name", ""), "dice_ce"))
    loss_settings: LossSettings = LossSettings()
    surface_metrics: bool = Field(False, description="also compute HD95 and NSD; slow in 3D")
    nsd_tolerance_mm: Positive = 2.0
    crf: CRF | None = Field(None, description="refines each case's class probabilities; absent: none")

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) != len(classes):
            raise ValueError("a class is named twice")
        if "background" in classes:
            raise ValueError("'background' is implied; name the foreground classes only")
        if UNLABELLED_NAME in classes:
            raise ValueError(
                f"'{UNLABELLED_NAME}' is a site's word for what nobody looked at; name the class otherwise"
            )
        return classes

    @model_validator(mode="after")
    def _loss_knows_its_settings(self) -> Self:
        self.loss_settings.check(self.loss)
        return self

    @model_validator(mode="after")
    def _crf_of_a_segmentation(self) -> Self:
        if self.crf is not None:
            if self.name != "segmentation":
                raise ValueError(f"crf is for name = 'segmentation'; name is '{self.name}'")
            self.crf.check(self.dimensions)
        return self

    @model_validator(mode="after")
    def _labels_of_its_kind(self) -> Self:
        if self.labels == "single" and self.name == "segmentation":
            raise ValueError(
                "labels = 'single' is for name = 'classification': every voxel has one class anyway"
            )
        if self.labels == "single" and len(self.classes) < 2:
            raise ValueError("labels = 'single' needs two classes at least, of which a case shows one")
        if self.surface_metrics and self.name == "classification":
            raise ValueError(
                "surface_metrics are for name = 'segmentation': a class of a whole image has no surface"
            )
        return self

    @property
    def scores(self) -> tuple[Score, ...]:
        """The metrics that it is measured by, the headline first."""
        settings = {"surface_metrics": self.surface_metrics, "single": self.labels == "single"}
        return scores_of(self.name, frozenset(name for name, on in settings.items() if on))
