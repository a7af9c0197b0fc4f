"""Layers that run again in the backward pass (activation checkpointing) count once, in every criterion."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

from lightning_taylor_prune import Pruner
from lightning_taylor_prune.criteria import CRITERIA

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4)

Run = Callable[["Residual", Tensor], Tensor]


class Block(nn.Module):
    """A residual block: all blocks read the units of one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out_of = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out_of(self.into(x).tanh())


class Residual(nn.Module):
    """Two blocks on a stream, run in one way or another."""

    def __init__(self, run: Run, frozen: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.run = run
        self.stem, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(Block(), Block())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        if frozen:
            self.blocks[0].into.weight.requires_grad_(False)
            self.blocks[1].out_of.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)

    def plain(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def _blocks(network: Residual, x: Tensor, **options: Any) -> Tensor:
    x = network.stem(x)
    for block in network.blocks:
        x = checkpoint(block, x, **options)
    return network.head(x)


def _nested(network: Residual, x: Tensor) -> Tensor:
    def both(x: Tensor) -> Tensor:
        return network.blocks[1](checkpoint(network.blocks[0], x, use_reentrant=True))

    return network.head(checkpoint(both, network.stem(x), use_reentrant=True))


def _saves_convolutions() -> Any:
    def policy(_: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        is_kept = op is torch.ops.aten.convolution.default
        return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def _sequential(network: Residual, x: Tensor, use_reentrant: bool) -> Tensor:
    return network.head(checkpoint_sequential(network.blocks, 2, network.stem(x), use_reentrant=use_reentrant))


WAYS: dict[str, Run] = {
    "blocks": partial(_blocks, use_reentrant=False),
    "blocks, reentrant": partial(_blocks, use_reentrant=True),
    "nested, reentrant": _nested,
    "all of it": lambda network, x: checkpoint(network.plain, x, use_reentrant=False),
    "sequential": partial(_sequential, use_reentrant=False),
    "sequential, reentrant": partial(_sequential, use_reentrant=True),
    "with contexts": partial(
        _blocks, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), contextlib.nullcontext())
    ),
    "selective": partial(_blocks, use_reentrant=False, context_fn=_saves_convolutions),
}


def scored(run: Run, criterion: str, frozen: bool) -> tuple[list[tuple[str, int]], Tensor]:
    """Return groups, and scores after two updates of which the first has two backward passes."""
    network = Residual(run, frozen)
    pruner = Pruner(network, IMAGES, criterion=criterion)
    for parts in (2, 1):
        network.zero_grad()
        for images, labels in zip(IMAGES.chunk(parts), LABELS.chunk(parts), strict=True):
            (F.cross_entropy(network(images), labels) / parts).backward()
        pruner.update()
    return [(group.name, group.num_channels) for group in pruner.groups], pruner.scores


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("criterion", sorted(name for name in CRITERIA if name.startswith("taylor")))
@pytest.mark.parametrize("way", WAYS)
def test_groups_and_scores_are_those_without_recomputation(way: str, criterion: str, frozen: bool) -> None:
    groups, scores = scored(Residual.plain, criterion, frozen)
    found, recomputed = scored(WAYS[way], criterion, frozen)
    assert found == groups
    torch.testing.assert_close(recomputed, scores, rtol=1e-4, atol=1e-9, equal_nan=True)
