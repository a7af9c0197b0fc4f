"""What the tests of the command line name as targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.networks import NETWORKS


def small(classes: int = 4) -> nn.Module:
    """Return a network, and print something, as factories of users do."""
    print("building")
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, classes, 3))


def with_inputs() -> tuple[nn.Module, Any]:
    """Return a network, and what it is called with."""
    network = NETWORKS["conv_bn"]
    return network.build(), network.example()


def tokens() -> nn.Module:
    """Return a network whose input are integers."""
    return nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))


def only_in_evaluation() -> nn.Module:
    """Return a network that cannot be called in training mode without more arguments."""
    return _OnlyInEvaluation(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


def failing() -> nn.Module:
    """Fail as code of users does."""
    raise KeyError("no such\nlayer")


NOT_CALLABLE = 3


class _OnlyInEvaluation(nn.Sequential):
    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        assert not self.training or targets is not None
        result: Tensor = super().forward(x)
        return torch.relu(result)
