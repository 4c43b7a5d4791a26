"""DynUNet: the U-Net of nnU-Net (Isensee et al. 2021), of MONAI's layers, in 2D and 3D.

The parts are those of MONAI's ``DynUNet``, with its names and initial weights (He normal, slope 0.01); its forward is not used,
since it keeps the coarser outputs on the network, and names every parameter twice. As in nnU-Net, the output of every level of
the decoder but the coarsest is supervised, at its own resolution; their weights are those of ``tasks.supervision``.
"""

from __future__ import annotations

from monai.networks.nets import DynUNet as Network
from torch import Tensor, nn

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.unets_modern import DynUNet
from fedmed_common.models.parts.norms import MONAI, use_group_norm

FEATURES_LIMIT = {2: 512, 3: 320}


def build(model: DynUNet, plan: Plan) -> nn.Module:
    """``(B, in_channels, *patch)`` to logits ``(B, outputs, *patch)``; training with deep supervision, coarser ones too."""
    kernels, strides = model.stages(plan)
    limit = model.features_limit or FEATURES_LIMIT[plan.dimensions]
    supervised = len(strides) - 3 if model.deep_supervision else 0
    network = Dynamic(
        Network(
            spatial_dims=plan.dimensions,
            in_channels=plan.in_channels,
            out_channels=plan.outputs,
            kernel_size=kernels,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=[min(model.features * 2**level, limit) for level in range(len(strides))],
            norm_name=MONAI[model.norm],
            act_name=("leakyrelu", {"inplace": False, "negative_slope": 0.01}),
            deep_supervision=supervised > 0,
            deep_supr_num=max(supervised, 1),
        )
    )
    if model.norm == "group":
        use_group_norm(network)
    return network


class Dynamic(nn.Module):
    """The layers of MONAI's network; ``upsamples`` from the coarsest, ``deep_supervision_heads`` from the second finest."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.input_block, self.downsamples = network.input_block, network.downsamples
        self.bottleneck, self.upsamples = network.bottleneck, network.upsamples
        self.output_block = network.output_block
        self.deep_supervision_heads = (
            network.deep_supervision_heads if network.deep_supervision else nn.ModuleList()
        )

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The finest; while training, if several are supervised, a tuple from the finest to the coarsest."""
        skips = [self.input_block(image)]
        for downsample in self.downsamples:
            skips.append(downsample(skips[-1]))
        maps = self.bottleneck(skips[-1])
        levels: list[Tensor] = []
        for upsample in self.upsamples:
            maps = upsample(maps, skips.pop())
            levels.insert(0, maps)
        logits: Tensor = self.output_block(maps)
        if not self.training or not len(self.deep_supervision_heads):
            return logits
        heads = zip(self.deep_supervision_heads, levels[1:], strict=False)
        return logits, *(head(level) for head, level in heads)
