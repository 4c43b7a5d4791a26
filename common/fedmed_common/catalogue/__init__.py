"""The architectures that an experiment can name: their settings, what they need of a patch, where they come from.

Nothing here imports a network library: the networks themselves are in ``fedmed_common.models``, one architecture a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union, get_args

from pydantic import Discriminator, Tag

from fedmed_common.catalogue.base import Architecture, Plan
from fedmed_common.catalogue.classification import Classifiers
from fedmed_common.catalogue.composed import Composed
from fedmed_common.catalogue.deeplab import DeepLabs
from fedmed_common.catalogue.fully_convolutional import FullyConvolutional
from fedmed_common.catalogue.multimodal import Multimodal
from fedmed_common.catalogue.transformers import Transformers
from fedmed_common.catalogue.unets import UNet, UNets
from fedmed_common.catalogue.unets_modern import ModernUNets

__all__ = ["ARCHITECTURES", "AnyArchitecture", "Architecture", "Plan", "UNet"]

_Known: TypeAlias = (
    FullyConvolutional | UNets | ModernUNets | Transformers | DeepLabs | Composed | Multimodal | Classifiers
)

ARCHITECTURES: dict[str, type[Architecture]] = {
    kind.model_fields["name"].default: kind for kind in get_args(_Known)
}
"""By the name that an experiment gives."""


def _name(value: Any) -> Any:
    """A table without a name is a U-Net's."""
    return value.get("name", "unet") if isinstance(value, dict) else getattr(value, "name", None)


if TYPE_CHECKING:
    AnyArchitecture: TypeAlias = _Known
else:
    AnyArchitecture = Annotated[
        Union[tuple(Annotated[kind, Tag(name)] for name, kind in ARCHITECTURES.items())],  # noqa: UP007
        Discriminator(_name),
    ]
