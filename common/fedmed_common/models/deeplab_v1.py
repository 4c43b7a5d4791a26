"""DeepLab v1 with a large field of view (Chen et al. 2015, sections 3 and 4.2, DeepLab-LargeFOV), in 2D and 3D.

VGG-16 at stride 8, a 3x3 convolution that dilates by 12 in place of its first linear layer, 1024 features, and logits. The paper
interpolates them at inference alone and trains at stride 8; ours always gives them at full resolution. Its VGG-16 has no norms;
``norms = false`` gives that. The fully connected CRF that follows in the paper is ``[task.crf]``, for any network.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.deeplab import DeepLabV1
from fedmed_common.models.backbones.vgg16 import DilatedVGG16
from fedmed_common.models.parts.aspp import small_head
from fedmed_common.models.parts.convolutions import MEAN_POOL, convolution, initialise, resized, scaled
from fedmed_common.models.parts.norms import make_norm

WIDE = 1024


class Network(nn.Module):
    """``backbone``, ``field`` and ``head``."""

    def __init__(self, model: DeepLabV1, plan: Plan) -> None:
        super().__init__()
        dimensions, wide = plan.dimensions, scaled(WIDE, model.width)
        norm = model.norm if model.norms else None
        self.backbone = DilatedVGG16(plan.in_channels, dimensions, norm, width=model.width)
        self.mean = MEAN_POOL[dimensions](3, stride=1)
        self.around = (1,) * 2 * dimensions
        layers: list[nn.Module] = []
        for entering, kernel, rate in ((self.backbone.channels, 3, model.rate), (wide, 1, 1)):
            layers.append(convolution(dimensions, entering, wide, kernel, dilation=rate, bias=True))
            layers += [make_norm(norm, wide, dimensions)] if norm is not None else []
            layers += [nn.ReLU(), nn.Dropout(model.dropout)]
        self.field = nn.Sequential(*layers)
        initialise(self.field)
        self.head = small_head(dimensions, wide, plan.outputs)

    def forward(self, image: Tensor) -> Tensor:
        mean = self.mean(pad(self.backbone(image), self.around))
        return resized(self.head(self.field(mean)), image)


def build(model: DeepLabV1, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``."""
    return Network(model, plan)
