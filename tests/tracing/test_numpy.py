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
from lightning_taylor_prune.groups.find import groups_of_calls
from lightning_taylor_prune.tracing.call import Call, decode_calls, encode_calls
from lightning_taylor_prune.tracing.paths import answered_paths
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


OF_INPUT: dict[str, Factor] = {
    "detached": lambda network, x: x.detach().numpy().mean(),
    "moved": lambda network, x: x.cpu().numpy().std(),
    "forced": lambda network, x: x.numpy(force=True).max(),
    "asarray": lambda network, x: np.asarray(x)[0, 0, 0, 0],
    "array": lambda network, x: np.array(x, dtype=np.float32).min(),
    "lists": lambda network, x: np.array(x[0, 0].tolist()).sum(),
    "function": lambda network, x: np.linalg.norm(x),
    "several": lambda network, x: x.numpy().mean() + network.scales.numpy()[0] + x.mean().item() + np.asarray(x).max(),
}


@pytest.mark.parametrize("name", OF_INPUT)
def test_numbers_of_the_input_are_those_of_the_real_run(name: str) -> None:
    model, example, groups = prepared(Scaled(OF_INPUT[name]), (IMAGES,), torch.double)
    plan = groups.plan(random_units(groups))
    assert plan.removed and masked_error(model, copy.deepcopy(model), plan, example) < 1e-10


class OnArrays(nn.Module):
    """Goes on with what NumPy has made of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(torch.from_numpy(np.exp(x.numpy().mean((2, 3))))).relu())


def test_what_numpy_makes_of_the_input_is_an_input() -> None:
    model, example, groups = prepared(OnArrays(), (IMAGES,), torch.double)
    plan = groups.plan(random_units(groups))
    assert list(plan.removed) == ["first"] and masked_error(model, copy.deepcopy(model), plan, example) < 1e-10


def test_arrays_of_the_input_survive_a_checkpoint() -> None:
    model = Scaled(OF_INPUT["detached"])
    encoded = encode_calls(answered_paths(model, [Call("", (IMAGES,))]), torch.device("cpu"))
    assert encoded is not None
    again = groups_of_calls(model, decode_calls(copy.deepcopy(encoded), torch.device("cpu")))
    assert [g.num_channels for g in again] == [8]


def test_features_that_numpy_reads_are_locked_with_the_line() -> None:
    groups = find_groups(Reading(), IMAGES)
    assert "read as a NumPy array" in groups.locked[0].reason and f"{__file__}:" in groups.locked[0].reason


class Reading(nn.Module):
    """Computes with its own features in NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 8), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.second(h + torch.from_numpy(np.tanh(h.detach().numpy())))


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
