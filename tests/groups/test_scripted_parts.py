"""Networks with a scripted part: what compiled code holds is locked, the rest is pruned."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune import find_groups
from tests.oracles import masked_error, random_units


class ScriptedMiddle(nn.Module):
    """Runs a scripted block between two ordinary ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8))
        self.middle = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.Tanh()))
        self.last = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


def build() -> tuple[nn.Module, tuple[Tensor]]:
    torch.manual_seed(0)
    return ScriptedMiddle().double().eval(), (torch.randn(4, 6, dtype=torch.double),)


@pytest.mark.parametrize("steps", [0, 3], ids=["fresh", "optimised"])
def test_what_is_around_a_scripted_part_is_pruned_as_masked(steps: int) -> None:
    model, example = build()
    for _ in range(steps):  # after a few runs TorchScript runs other operators
        model(*example).sum().backward()
    groups = find_groups(model, example)
    assert {group.name: group.num_channels for group in groups} == {"first.0": 10, "last.0": 12}
    assert masked_error(model, copy.deepcopy(model), groups.plan(random_units(groups)), example) < 1e-10
    assert (model.first[0].out_features, model.last[0].out_features) == (7, 8)


@pytest.mark.parametrize("traced", [False, True], ids=["scripted", "traced"])
def test_what_compiled_code_holds_is_locked_with_its_own_reason(traced: bool) -> None:
    model, example = build()
    if traced:
        model.middle = torch.jit.trace(nn.Sequential(nn.Linear(8, 8), nn.Tanh()).double(), torch.zeros(1, 8).double())
    reasons = {entry.name: entry.reason for entry in find_groups(model, example).locked}
    assert reasons["middle.0"] == "belongs to a scripted module, which cannot change its shapes"
