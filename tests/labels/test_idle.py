"""Layers that the traced calls do not run must fit the pruned network when they do run."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune import PruningWarning, find_groups, prune_
from lightning_taylor_prune.groups.groups import ChannelGroups
from tests.oracles import random_units


class Tower(nn.Module):
    """A body of 16 and 24 channels, and a part that `forward` does not run."""

    def __init__(self, part: nn.Module, middle: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc = nn.Linear(6, middle), nn.Linear(middle, 24), nn.Linear(24, 5)
        self.part = part

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


PARTS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(24, 3),
    "deep": lambda: nn.Sequential(nn.Linear(24, 7), nn.ReLU(), nn.Linear(7, 3)),
    "norm_first": lambda: nn.Sequential(nn.BatchNorm1d(24), nn.Linear(24, 3)),
    "residual": lambda: nn.Sequential(nn.Linear(24, 7), nn.Linear(7, 24)),
    "token": lambda: nn.ParameterList([nn.Parameter(torch.zeros(1, 24))]),
    "lstm": lambda: nn.LSTM(24, 4),
}


def quiet_groups(model: nn.Module, x: Tensor) -> ChannelGroups:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PruningWarning)
        return find_groups(model, x)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("middle", [16, 24], ids=["only_one_fits", "several_fit"])
def test_a_part_that_does_not_run_fits_after_pruning(part: Callable[[], nn.Module], middle: int) -> None:
    model, x = Tower(part(), middle), torch.randn(4, 6)
    groups = quiet_groups(model, x)
    prune_(model, groups.plan(random_units(groups, 0.4)))
    h = model.features(x)
    used = h + model.part[0] if isinstance(model.part, nn.ParameterList) else model.part(h)
    assert (used[0] if isinstance(used, tuple) else used).shape[0] == 4


def test_what_is_unambiguous_is_followed() -> None:
    groups = find_groups(Tower(nn.Linear(24, 3)), torch.randn(4, 6))
    assert [s.tensor for s in groups["b"].slices] == ["b.weight", "b.bias", "fc.weight", "part.weight"]


def test_what_is_ambiguous_is_locked_with_the_name_of_the_layer() -> None:
    with pytest.warns(PruningWarning, match="read or written by `part`"):
        groups = find_groups(Tower(nn.Linear(24, 3), middle=24), torch.randn(4, 6))
    assert {entry.name for entry in groups.locked if "`part`" in entry.reason} == {"a", "b"}


def test_a_part_whose_sizes_nothing_has_locks_nothing() -> None:
    groups = find_groups(Tower(nn.Linear(11, 3)), torch.randn(4, 6))
    assert {group.name for group in groups} == {"a", "b"}


class Experts(nn.Module):
    """The first of several experts runs; all are built alike, as wide inside as the stream."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, inside), nn.ReLU(), nn.Linear(inside, 16)) for _ in range(3)
        )

    def forward(self, x: Tensor, expert: int = 0) -> Tensor:
        h = F.relu(self.stem(x))
        return self.head(h + self.experts[expert](h))


@pytest.mark.parametrize("inside", [12, 16])
def test_an_expert_that_does_not_run_follows_the_one_that_does(inside: int) -> None:
    model, x = Experts(inside), torch.randn(4, 6)
    groups = find_groups(model, x)
    prune_(model, groups.plan(random_units(groups, 0.4)))
    assert [model(x, expert).shape for expert in range(3)] == [(4, 3)] * 3


@pytest.mark.parametrize("inside", [12, 16])
def test_an_expert_that_does_not_run_locks_nothing_of_the_others(inside: int) -> None:
    assert {group.name for group in find_groups(Experts(inside), torch.randn(4, 6))} == {"stem", "experts.0.0"}
