"""Integers of widths that only methods read which run after pruning: a block that is made one convolution, say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune import TaylorPruningCallback, find_groups, load_pruned, prune_
from lightning_taylor_prune.modules.sizes import size_at
from tests.lightning_modules import Classifier, loader, trainer
from tests.networks import conv, head
from tests.oracles import random_units, randomize_norms_, relative_error

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)


class Block(nn.Module):
    """A convolution beside an identity, each with its normalisation; `fused` makes one convolution of them."""

    def __init__(self, width: int = 12, groups: int = 1, **held: Any) -> None:
        super().__init__()
        self.channels, self.groups = width, groups
        vars(self).update(held)
        self.conv = conv(width, width, groups=groups, bias=False)
        self.norm, self.identity = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.identity(x)

    def fused(self) -> nn.Conv2d:
        made = conv(self.channels, self.channels, groups=self.groups).to(self.conv.weight)
        kernel, (scale, shift) = torch.zeros_like(made.weight), _affine(self.norm)
        diagonal = torch.arange(self.channels)
        own_scale, own_shift = _affine(self.identity)
        kernel[diagonal, diagonal % (self.channels // self.groups), 1, 1] = own_scale
        made.weight.data = self.conv.weight * scale.view(-1, 1, 1, 1) + kernel
        made.bias.data = shift + own_shift
        return made


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


class Network(nn.Module):
    """A block between two convolutions."""

    def __init__(self, block: nn.Module | None = None, width: int = 12, **held: Any) -> None:
        super().__init__()
        vars(self).update(held)
        self.stem, self.block = conv(3, width), Block(width) if block is None else block
        outputs = getattr(getattr(self.block, "second", None), "out_channels", width)
        self.head = head(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).relu())


class Twice(nn.Module):
    """Two layers, from one width to another."""

    def __init__(self, c_in: int, inner: int, c_out: int, depthwise: bool = False, **held: Any) -> None:
        super().__init__()
        vars(self).update(held)
        self.first = conv(c_in, inner, groups=c_in if depthwise else 1)
        self.second = conv(inner, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class WithLinear(nn.Module):
    """Several layers of one width below it, and a classifier of its own."""

    def __init__(self, **held: Any) -> None:
        super().__init__()
        vars(self).update(held)
        self.stem = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.stem(x))


class Reads(Twice):
    """Its forward reads the number of channels for something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.channels > 2 else x


def pruned(network: nn.Module, example: Tensor = IMAGES) -> nn.Module:
    randomize_norms_(network.to(example.dtype)).eval()
    groups = find_groups(network, example)
    prune_(network, groups.plan(random_units(groups)))
    return network


@pytest.mark.parametrize("groups", [1, 4, 12])
def test_a_block_is_made_one_convolution_after_pruning(groups: int) -> None:
    network = pruned(Network(Block(groups=groups)))
    block = copy.deepcopy(network)
    network.block = network.block.fused()
    assert relative_error(network(IMAGES), block(IMAGES)) < 1e-12


FOLLOW = {
    "width": (lambda: Network(Twice(8, 9, 7, width=9), 8), "block.width", lambda n: n.block.first.out_channels),
    "into": (lambda: Network(Twice(8, 9, 8, in_chs=8), 8), "block.in_chs", lambda n: n.block.first.in_channels),
    "out of": (lambda: Network(Twice(8, 9, 8, outDim=8), 8), "block.outDim", lambda n: n.block.second.out_channels),
    "depthwise": (
        lambda: Network(Twice(6, 12, 6, True, in_dim=6), 6),
        "block.in_dim",
        lambda n: n.block.first.in_channels,
    ),
    "tuple": (lambda: Network(Twice(8, 9, 8, dims=(3, 9)), 8), "block.dims.1", lambda n: n.block.first.out_channels),
    "own layers": (lambda: WithLinear(num_features=8), "num_features", lambda n: n.classifier.in_features),
}


@pytest.mark.parametrize("name", FOLLOW)
def test_an_integer_that_names_a_width_follows_it(name: str) -> None:
    make, path, width = FOLLOW[name]
    network = make()
    before = width(network)
    pruned(network)
    holder, _, rest = path.partition(".") if path.startswith("block.") else ("", "", path)
    assert size_at(network.get_submodule(holder), rest) == width(network) < before


STAY = {
    "classes": {"num_classes": 9},
    "kernel": {"kernel_channels": 9, "kernel": 9},
    "layers": {"num_hidden_layers": 9},
    "batch": {"batch_size": 9},
    "unknown word": {"patience": 9},
    "inside settings": {"sizes": {"width": 9}},
}


@pytest.mark.parametrize("name", STAY)
def test_an_integer_of_another_meaning_is_not_changed(name: str) -> None:
    network = pruned(Network(Twice(8, 9, 8, **copy.deepcopy(STAY[name])), 8))
    assert {key: vars(network.block)[key] for key in STAY[name]} == STAY[name]


def test_a_width_that_two_groups_have_is_not_changed() -> None:
    assert pruned(Network(Twice(9, 9, 9, channels=9), 9)).block.channels == 9


def test_a_width_that_is_locked_is_not_changed() -> None:
    network = Twice(3, 9, 5, channels=5)
    assert pruned(network).channels == 5


def test_an_integer_that_the_traced_code_reads_is_left_to_what_the_trial_cuts_show() -> None:
    assert pruned(Network(Reads(8, 9, 8, channels=9), 8)).block.channels == 9


def test_a_kernel_size_is_not_changed() -> None:
    patches = nn.Sequential(nn.Conv2d(3, 9, 9, stride=3, padding=4), nn.BatchNorm2d(9), nn.ReLU(), head(9))
    assert pruned(patches)[0].kernel_size == (9, 9)


def test_a_pruned_checkpoint_keeps_them(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 12, 3), Block(), nn.ReLU(), head(12))
    fit = trainer(TaylorPruningCallback(every_n_steps=2, filters_per_prune=3, max_prunes=2), default_root_dir=tmp_path)
    fit.fit(Classifier(copy.deepcopy(network)), loader())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    fresh = load_pruned(tmp_path / "last.ckpt", network)
    assert fresh[1].channels == fresh[0].out_channels == 6
