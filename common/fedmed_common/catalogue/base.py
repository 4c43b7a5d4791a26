"""What every architecture's table in an experiment file has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

from pydantic import Field

from fedmed_common.fields import Model

Norm = Literal["instance", "group", "batch"]
NORMS = "of the convolutions' layers; batch: not with [privacy]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a network is built for. ``outputs``: channels of its logits. ``patch``: voxels per axis of what it sees.

    ``spacing_mm``: of those voxels, where the experiment says it.
    """

    dimensions: Literal[2, 3]
    in_channels: int
    outputs: int
    patch: tuple[int, ...]
    spacing_mm: tuple[float, float, float] | None = None


class Architecture(Model):
    """One architecture: its settings as fields, and what is known of it before anything heavy is imported.

    A subclass has a field ``name: Literal["..."]`` and lives in one of this package's modules; its network is made by
    ``build(settings, plan) -> Module`` in the module that ``module`` names.
    """

    norm: Norm = Field("instance", description=NORMS)

    module: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    dimensions: ClassVar[tuple[int, ...]] = (2,)
    head: ClassVar[tuple[str, ...]] = ()
    """Patterns of the parameter names that depend on the classes: what transfer learning trains anew."""
    attention: ClassVar[tuple[str, ...]] = ()
    """Patterns of the layer names that get an adapter where ``transfer.lora`` names none."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Packages of the extra ``transformers`` that its network is made of."""
    exports: ClassVar[bool] = True
    """Whether its network can be written as ONNX."""
    prompted: ClassVar[bool] = False
    """Whether it is told where to look: in training and in evaluation by the reference label."""

    def multiple(self) -> int:
        """Each number of ``data.patch`` must be a multiple of this; 1: any size."""
        return 1

    def least(self) -> int:
        """The least number in ``data.patch``."""
        return 1

    def sizes(self) -> str:
        """What ``check`` asks of a patch, in words."""
        multiple, least = self.multiple(), self.least()
        parts = [f"multiples of {multiple}"] if multiple > 1 else []
        parts += [f"at least {least}"] if least > max(1, multiple) else []
        return ", ".join(parts) or "any"

    def measures_one_voxel(self, _plan: Plan) -> bool:
        """Whether some norm sees maps of one voxel, of which a batch norm needs two samples at once."""
        return False

    def check(self, plan: Plan) -> None:
        """Refuse a plan that the network cannot be built for.

        Raises:
            ValueError: names the field and the numbers.
        """
        if plan.dimensions not in self.dimensions:
            known = " or ".join(str(number) for number in self.dimensions)
            raise ValueError(
                f"model.name = '{self.label}' works in {known}D; task.dimensions is {plan.dimensions}"
            )
        self._check_sizes(plan.patch)

    def _check_sizes(self, patch: Sequence[int]) -> None:
        for size in patch:
            if size % self.multiple():
                raise ValueError(
                    f"data.patch {list(patch)}: {size} is not a multiple of {self.multiple()}, as this '{self.label}' needs"
                )
            if size < self.least():
                raise ValueError(
                    f"data.patch {list(patch)}: {size} is less than {self.least()}, the least that this '{self.label}' needs"
                )

    def summary(self) -> str:
        """The settings in a line, as ``channels 16 32 64, norm instance``."""
        settings = self.model_dump(mode="json", exclude={"name"})
        return ", ".join(f"{name} {_plain(value)}" for name, value in settings.items())

    @property
    def label(self) -> str:
        """The name that the experiment gives."""
        return str(getattr(self, "name"))  # noqa: B009


class Halving(Architecture):
    """A network whose norms see a map as small as the patch over ``multiple()``."""

    def sizes(self) -> str:
        """Also that not all of the patch is halved away."""
        return f"multiples of {self.multiple()}, one of them more"

    def check(self, plan: Plan) -> None:
        """Also refuses a deepest map of one voxel, of which a norm would leave nothing."""
        super().check(plan)
        if prod(size // self.multiple() for size in plan.patch) == 1:
            raise ValueError(
                f"data.patch {list(plan.patch)}: '{self.label}' shrinks it to one voxel; its norm over that voxel alone leaves "
                "nothing; use a larger data.patch"
            )


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
