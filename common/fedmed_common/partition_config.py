"""``[simulation.partition]``: sites drawn from the pooled cases of the listed ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedmed_common.fields import Model, Positive
from fedmed_common.task_config import Task

MANUFACTURER = "Manufacturer"
"""The one column that needs no index file: it stands in the headers of DICOM."""


class Partition(Model):
    """Draw sites from the pooled cases of the listed ones.

    even: equal numbers. quantity: uneven numbers. dirichlet: uneven classes, patients grouped by their rarest one. presence:
    each class spread unevenly by itself, in a long tail where ``imbalance`` is above 1. column: by what an index file says of a
    patient.
    """

    kind: Literal["even", "dirichlet", "presence", "quantity", "column"] = "even"
    sites: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        None, description="how many; absent with kind column: one for each value"
    )
    alpha: Positive = Field(
        0.5,
        description="Dirichlet concentration of kinds dirichlet, presence (classes) and quantity (sizes): smaller is more uneven",
    )
    imbalance: Annotated[float, Field(ge=1.0, le=1e6)] = Field(
        1.0,
        description="kind presence: training patients with the commonest class over those with the rarest; 1 leaves nobody out",
    )
    vacant: Annotated[int, Field(ge=0)] = Field(
        0, description="classes per site whose training patients are dealt to other sites"
    )
    unannotated: Annotated[int, Field(ge=0)] = Field(
        0, description="classes per site that count as not annotated there"
    )
    column: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="kind column: the column of the index file; 'Manufacturer' without one: of DICOM headers",
    )
    index: Path | None = Field(None, description="kind column: a CSV file")

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        if self.sites is None and self.kind != "column":
            raise ValueError("sites is missing: say how many sites to draw")
        if self.imbalance > 1 and self.kind != "presence":
            raise ValueError(
                f"imbalance = {self.imbalance:g} is of kind = 'presence'; kind is '{self.kind}': use 'presence', or leave "
                "imbalance out"
            )
        if self.kind != "column" and (self.column is not None or self.index is not None):
            given = "column" if self.column is not None else "index"
            raise ValueError(
                f"{given} is of kind = 'column'; kind is '{self.kind}': use 'column', or leave {given} out"
            )
        if self.kind == "column":
            self._check_column()
        return self

    @model_validator(mode="after")
    def _gaps_need_others(self) -> Self:
        for name in ("vacant", "unannotated"):
            if getattr(self, name) and self.sites == 1:
                raise ValueError(
                    f"{name} = {getattr(self, name)} with sites = 1 would take a class from everyone: draw more sites, or leave "
                    f"{name} out"
                )
        return self

    def _check_column(self) -> None:
        if self.column is None:
            raise ValueError("column is missing: kind = 'column' needs one, as column = 'vendor'")
        if self.index is None and self.column != MANUFACTURER:
            raise ValueError(
                f"index is missing: column = '{self.column}' is looked up in a CSV file, as index = 'index.csv'; only "
                f"'{MANUFACTURER}' is read from DICOM headers without one"
            )
        if self.vacant:
            raise ValueError(
                f"vacant = {self.vacant} would move patients away from the site that their column names: leave vacant out, or "
                "use another kind"
            )

    def check_classes(self, task: Task) -> None:
        """Raises ValueError where the partition makes no sense for the task's classes."""
        classes = len(task.classes)
        for name in ("vacant", "unannotated"):
            if getattr(self, name) >= classes:
                raise ValueError(
                    f"simulation.partition.{name} ({getattr(self, name)}) must be less than the number of task.classes, {classes}"
                )
        if self.vacant + self.unannotated >= classes:
            raise ValueError(
                f"simulation.partition.vacant + unannotated ({self.vacant} + {self.unannotated}) must be less than the number of "
                f"task.classes ({classes}), or a site has nothing to learn from"
            )
        if self.imbalance > 1 and classes == 1:
            raise ValueError(
                "simulation.partition.imbalance makes a long tail of several classes; task.classes has one: leave it out"
            )
        if self.unannotated and task.name == "classification" and task.labels == "single":
            raise ValueError(
                "simulation.partition.unannotated leaves patients without their only class where task.labels = 'single': leave "
                "it out, or use task.labels = 'multi'"
            )
