"""The work that every framework does: a U-Net's federated averaging on batches that were drawn beforehand.

Imports torch, numpy and safetensors, and no federated framework: each peer's environment has these three. A folder of work
(``prepare.py`` writes it) holds ``work.json``, the start weights, and by site its images ``(cases, 1, X, Y)`` float32, labels
``(cases, X, Y)`` uint8, and picks ``(rounds, steps, batch, 3)``: which case, and the patch's first row and column.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS, SECONDS, START = "weights.safetensors", "seconds.json", "start.safetensors"


class UNet(nn.Module):
    """The U-Net of fedmed's ``unet_2015`` in 2D with instance norms: the same layers, names and order of operations."""

    def __init__(self, channels: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        upwards = list(pairwise(reversed(channels)))
        self.left = nn.ModuleList(
            _double(entering, leaving) for entering, leaving in pairwise((1, *channels))
        )
        self.right = nn.ModuleList(_double(2 * fine, fine) for _, fine in upwards)
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for coarse, fine in upwards)
        self.head = nn.Conv2d(channels[0], outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``(B, outputs, X, Y)`` of images ``(B, 1, X, Y)``."""
        features = []
        for level, stage in enumerate(self.left):
            features.append(stage(self.pool(features[-1]) if level else image))
        *skips, maps = features
        for up, stage in zip(self.up, self.right, strict=True):
            maps = stage(torch.cat([skips.pop(), up(maps)], dim=1))
        return self.head(maps)


def _double(entering: int, leaving: int) -> nn.Sequential:
    return nn.Sequential(_normed(entering, leaving), _normed(leaving, leaving))


def _normed(entering: int, leaving: int) -> nn.Sequential:
    convolution = nn.Conv2d(entering, leaving, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.InstanceNorm2d(leaving, affine=True), nn.ReLU())


def loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross entropy, in the order in which fedmed takes the mean: over a sample's voxels, then over samples."""
    log_probability = logits.flatten(2).log_softmax(1)
    return -log_probability.gather(1, label.flatten(1)[:, None])[:, 0].mean(1).mean()


@dataclass(frozen=True)
class Work:
    """One folder of work. ``names``: the sites, in the order in which their updates are added. ``patients``: their weights."""

    folder: Path
    rounds: int
    steps: int
    batch: int
    patch: int
    channels: tuple[int, ...]
    outputs: int
    learning_rate: float
    momentum: float
    gradient_norm: float
    threads: int
    names: tuple[str, ...]
    patients: tuple[int, ...]
    _cases: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, folder: str | Path) -> Work:
        """What ``prepare.py`` wrote. Sets this process's threads."""
        document = json.loads((Path(folder) / "work.json").read_text())
        lists = {name: tuple(value) for name, value in document.items() if isinstance(value, list)}
        found = cls(folder=Path(folder), **{**document, **lists})
        torch.set_num_threads(found.threads)
        return found

    def model(self) -> UNet:
        """The network with the start weights."""
        network = UNet(self.channels, self.outputs)
        network.load_state_dict(self.start())
        return network

    def start(self) -> dict[str, Tensor]:
        """The start weights, by name."""
        return load_file(self.folder / START)

    def batches(self, site: int, round_number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The site's batches of a round (the first is 1): images ``(B, 1, X, Y)`` float32, labels ``(B, X, Y)`` int64."""
        if site not in self._cases:
            files = [self.folder / f"{self.names[site]}.{what}.npy" for what in ("images", "labels", "picks")]
            self._cases[site] = tuple(np.load(file, mmap_mode="r") for file in files)
        images, labels, picks = self._cases[site]
        size = self.patch
        for step in picks[round_number - 1]:
            image = np.zeros((self.batch, 1, size, size), np.float32)
            label = np.zeros((self.batch, size, size), np.int64)
            for place, (case, x, y) in enumerate(step):
                image[place] = images[case, :, x : x + size, y : y + size]
                label[place] = labels[case, x : x + size, y : y + size]
            yield torch.from_numpy(image), torch.from_numpy(label)

    def optimizer(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """A site's, new in each round."""
        return torch.optim.SGD(parameters, self.learning_rate, momentum=self.momentum)

    def train(self, network: nn.Module, site: int, round_number: int) -> float:
        """A site's steps in a round, in place; the mean loss."""
        network.train()
        optimizer, total = self.optimizer(network.parameters()), 0.0
        for image, label in self.batches(site, round_number):
            optimizer.zero_grad(set_to_none=True)
            found = loss(network(image), label)
            found.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), self.gradient_norm)
            optimizer.step()
            total += found.item()
        return total / self.steps


@lru_cache(maxsize=1)
def work_in(folder: str) -> Work:
    """The folder's work, read once in a process."""
    return Work.read(folder)


class Stopwatch:
    """When the rounds began and ended, on the clock that all processes share."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def begin(self) -> None:
        """The first round begins."""
        self.began = time.time()

    def end(self) -> None:
        """A round has ended."""
        self.ended = time.time()


def write(out: str | Path, weights: dict[str, Tensor], began: float, ended: float) -> None:
    """What every peer leaves: the last weights, and when its rounds began and ended (``time.time()``)."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    (folder / SECONDS).write_text(json.dumps({"began": began, "ended": ended}))


def read_seconds(out: str | Path) -> tuple[float, float]:
    """When the rounds of a peer began and ended."""
    document = json.loads((Path(out) / SECONDS).read_text())
    return document["began"], document["ended"]
