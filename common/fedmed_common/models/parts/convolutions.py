"""Convolutions by the number of dimensions, and channels by a multiplier."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedmed_common.catalogue.base import Norm
from fedmed_common.models.parts.norms import make_norm

CONVOLUTION: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
MAX_POOL: dict[int, type[nn.MaxPool2d | nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
MEAN_POOL: dict[int, type[nn.AvgPool2d | nn.AvgPool3d]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
MEAN_OF_ALL: dict[int, type[nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d]] = {
    2: nn.AdaptiveAvgPool2d,
    3: nn.AdaptiveAvgPool3d,
}
_LINEAR = {2: "bilinear", 3: "trilinear"}


def convolution(
    dimensions: int,
    channels_in: int,
    channels_out: int,
    kernel: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Module:
    """An odd kernel, padded so that at stride 1 a map keeps its size whatever the dilation."""
    return CONVOLUTION[dimensions](
        channels_in,
        channels_out,
        kernel,
        stride=stride,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        groups=groups,
        bias=bias,
    )


def normed(
    dimensions: int,
    channels_in: int,
    channels_out: int,
    kernel: int,
    norm: Norm,
    *,
    dilation: int = 1,
) -> nn.Sequential:
    """Convolution, norm, ReLU."""
    return nn.Sequential(
        convolution(dimensions, channels_in, channels_out, kernel, dilation=dilation),
        make_norm(norm, channels_out, dimensions),
        nn.ReLU(),
    )


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, to the nearest multiple of four, never less than four; as they are at width 1."""
    return channels if width == 1.0 else max(4, round(channels * width / 4) * 4)


def resized(maps: Tensor, like: Tensor) -> Tensor:
    """Linear interpolation to the extent of ``like``, corners of voxels not aligned."""
    if maps.shape[2:] == like.shape[2:]:
        return maps
    mode = _LINEAR[maps.ndim - 2]
    return interpolate(maps, size=like.shape[2:], mode=mode, align_corners=False)


def initialise(network: nn.Module) -> None:
    """He's normal initialisation (He et al. 2015), fan out, of all convolutions; norms start as the identity."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
