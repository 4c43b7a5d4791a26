"""Segment Anything (Kirillov et al. 2023) as transformers builds it, in 2D, prompted once per class.

Interactive segmentation: in training and in measurement the prompts come from the reference label, as a reader's box or click
would. Scores are therefore not comparable with those of networks that find a class by themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from transformers import SamConfig, SamModel

from fedmed_common.catalogue.base import Plan
from fedmed_common.catalogue.transformers import SAM

ABSENT = -1e4
"""Logit of a class without a prompt: far below the background's 0."""

_ENCODERS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "global_attn_indexes": [1]}
    | {"output_channels": 32, "num_pos_feats": 16, "window_size": 2},
    "vit_b": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"global_attn_indexes": [2, 5, 8, 11]},
    "vit_l": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    | {"global_attn_indexes": [5, 11, 17, 23]},
    "vit_h": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16}
    | {"global_attn_indexes": [7, 15, 23, 31]},
}
"""Image encoders: ``build_sam.py`` of the official code."""

_TINY_DECODER = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 32}
_UNUSED = ("iou_prediction_head", *(f"output_hypernetworks_mlps.{mask}." for mask in (1, 2, 3)))
"""Parts of the decoder that grade masks and give further ones: one prompt, one mask here."""


class Network(nn.Module):
    """``(B, in_channels, H, W)`` and prompts to logits ``(B, 1 + K, H, W)``: 0 for the background, a mask's logits per class."""

    def __init__(self, network: Any, model: SAM, classes: int) -> None:
        super().__init__()
        self.network, self.model, self.classes = network, model, classes

    def checkpoint_blocks(self) -> list[nn.Module]:
        """The image encoder's blocks."""
        return list(self.network.vision_encoder.layers)

    def prompt(self, target_BHW: Tensor) -> Tensor:
        """One prompt per class and image of a label map, the same each time; NaN for a class that is not in it.

        Boxes ``(B, K, 4)`` as x, y of the first and of the last voxel, with the margin; points ``(B, K, 2)`` as x, y. One box
        holds all of a class, also where that lies in several pieces; a point lies in the piece with the most interior voxel.
        """
        labels = target_BHW.cpu().numpy()
        of_mask = self._box if self.model.prompts == "box" else _point
        prompts = [[of_mask(label == value) for value in range(1, 1 + self.classes)] for label in labels]
        return torch.tensor(np.array(prompts), dtype=torch.float32, device=target_BHW.device)

    def forward(self, image_BCHW: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Without prompts, each class is prompted with a box around the whole image, or with its middle."""
        whole = self._everything(image_BCHW)
        if prompts is None:
            prompts = whole
        absent_BK = prompts.isnan().any(-1)
        known = prompts.where(~absent_BK[..., None], whole)
        scale = self.model.image_size / max(image_BCHW.shape[2:])
        masks_BKHW = self._masks(image_BCHW, known * scale)
        masks_BKHW = masks_BKHW.masked_fill(absent_BK[..., None, None], ABSENT)
        return torch.cat([torch.zeros_like(masks_BKHW[:, :1]), masks_BKHW], 1)

    def _everything(self, image_BCHW: Tensor) -> Tensor:
        height, width = image_BCHW.shape[2:]
        box = [0.0, 0.0, width - 1.0, height - 1.0]
        place = box if self.model.prompts == "box" else [box[2] / 2, box[3] / 2]
        return image_BCHW.new_tensor(place).expand(len(image_BCHW), self.classes, -1)

    def _masks(self, image_BCHW: Tensor, prompts: Tensor) -> Tensor:
        """The longer side is scaled to the encoder's size and the shorter one padded by zeros, as the official code does."""
        size, shape = self.model.image_size, image_BCHW.shape[2:]
        height, width = (max(1, round(side * size / max(shape))) for side in shape)
        scaled = _resize(image_BCHW, (height, width))
        encoded = self._encode(nn.functional.pad(scaled, (0, size - width, 0, size - height)))
        is_box = self.model.prompts == "box"
        sparse, dense = self.network.prompt_encoder(
            input_points=None if is_box else prompts[:, :, None],
            input_labels=None if is_box else torch.ones_like(prompts[..., :1]).int(),
            input_boxes=prompts if is_box else None,
            input_masks=None,
        )
        positions = self.network.get_image_wide_positional_embeddings()
        masks, _ = self.network.mask_decoder(
            image_embeddings=encoded,
            image_positional_embeddings=positions.expand(len(encoded), -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return _resize(_resize(masks[:, :, 0], (size, size))[..., :height, :width], tuple(shape))

    def _encode(self, image_BCSS: Tensor) -> Tensor:
        encoder = self.network.vision_encoder
        tokens = encoder.patch_embed(image_BCSS) + encoder.pos_embed
        for layer in encoder.layers:
            tokens = layer(tokens)
        encoded: Tensor = encoder.neck(tokens)
        return encoded

    def _box(self, mask_HW: NDArray[np.bool_]) -> list[float]:
        rows, columns = np.nonzero(mask_HW)
        if not rows.size:
            return [np.nan] * 4
        margin, (height, width) = self.model.box_margin, mask_HW.shape
        return [
            max(columns.min() - margin, 0),
            max(rows.min() - margin, 0),
            min(columns.max() + margin, width - 1),
            min(rows.max() + margin, height - 1),
        ]


def _point(mask_HW: NDArray[np.bool_]) -> list[float]:
    """The voxel farthest from the mask's outline; the first of equals."""
    if not mask_HW.any():
        return [np.nan] * 2
    depth = distance_transform_edt(np.pad(mask_HW, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return [float(column), float(row)]


def _resize(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def build(model: SAM, plan: Plan) -> nn.Module:
    """The variant with random weights; only the mask decoder, and where asked the image encoder, is trained."""
    small = model.variant == "tiny"
    images = {"image_size": model.image_size, "num_channels": plan.in_channels, "initializer_range": 0.02}
    prompts = {"image_size": model.image_size} | ({"hidden_size": 32} if small else {})
    config = SamConfig(
        vision_config=_ENCODERS[model.variant] | images,
        prompt_encoder_config=prompts,
        mask_decoder_config=_TINY_DECODER if small else {},
    )
    network = SamModel(config)
    network.requires_grad_(False)
    network.vision_encoder.requires_grad_(model.train_encoder)
    for name, parameter in network.mask_decoder.named_parameters():
        parameter.requires_grad_(not name.startswith(_UNUSED))
    return Network(network, model, plan.outputs - 1)
