"""Numbers that a network's code takes from tensors by `numpy`: those of constants are known without data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from lightning_taylor_prune import find_groups
from lightning_taylor_prune.errors import TraceError
from tests.networks import conv
from tests.oracles import masked_error, prepared, random_units

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

Factor = Callable[["Scaled", Tensor], Any]

KNOWN: dict[str, Factor] = {
    "buffer": lambda network, x: network.scales.numpy()[0],
    "moved": lambda network, x: network.scales.detach().cpu().numpy().sum(),
    "computed": lambda network, x: (network.scales * 2).numpy().max(),
    "array": lambda network, x: np.asarray(network.scales)[1],
    "constant": lambda network, x: torch.tensor([3.0, 4.0]).numpy()[1],
    "parameter": lambda network, x: network.gain.detach().numpy()[0],
}


class Scaled(nn.Module):
    """Multiplies features with a number that it has from NumPy."""

    def __init__(self, factor: Factor) -> None:
        super().__init__()
        self.first, self.second = conv(3, 8), conv(8, 4)
        self.gain = nn.Parameter(torch.tensor([1.5]))
        self.register_buffer("scales", torch.tensor([2.0, 3.0]))
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu() * float(self.factor(self, x)))


@pytest.mark.parametrize("name", KNOWN)
def test_numbers_of_constants_are_known(name: str) -> None:
    model, example, groups = prepared(Scaled(KNOWN[name]), (IMAGES,), torch.double)
    plan = groups.plan(random_units(groups))
    assert plan.removed and masked_error(model, copy.deepcopy(model), plan, example) < 1e-10


def test_numbers_of_the_input_are_refused() -> None:
    with pytest.raises(TraceError, match="numpy"):
        find_groups(nn.Sequential(Scaled(lambda network, x: x.abs().numpy().sum() % 2)), IMAGES[:, :, 0])


def test_numbers_of_channels_that_can_be_removed_lock_them() -> None:
    groups = find_groups(Scaled(lambda network, x: network.first.weight.detach().numpy().sum()), IMAGES)
    assert not groups.num_units


def test_an_array_of_a_trace_is_a_copy() -> None:
    def written(network: Scaled, x: Tensor) -> float:
        network.scales.numpy()[:] = 7.0
        return 1.0

    model = Scaled(written)
    find_groups(model, IMAGES)
    assert model.scales.tolist() == [2.0, 3.0]


def test_nothing_is_left_of_it() -> None:
    find_groups(Scaled(KNOWN["buffer"]), IMAGES)
    assert "numpy" not in vars(FakeTensor)
