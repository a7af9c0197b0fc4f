"""Mixtures of experts whose weights lie in one tensor, multiplied by an operator that fake tensors do not run."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune import find_groups
from lightning_taylor_prune.errors import PruningWarning
from tests.oracles import masked_error, prepared, random_units

ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))

COUNTS: dict[str, Callable[[Tensor], Tensor]] = {
    "histc": lambda chosen: torch.histc(chosen.float(), bins=4, min=0, max=3),
    "bincount": lambda chosen: torch.bincount(chosen, minlength=4),
    "one_hot": lambda chosen: F.one_hot(chosen, 4).sum(0),
    "scatter": lambda chosen: torch.zeros(4).long().scatter_add(0, chosen, torch.ones_like(chosen)),
}


class Experts(nn.Module):
    """Sends every row to two of four experts, as current libraries do.

    Args:
        count: Returns how many rows each expert gets.
        together: Every expert is given all rows in place of its own.
    """

    def __init__(self, count: Callable[[Tensor], Tensor], together: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.gate, self.last = nn.Linear(4, 16), nn.Linear(16, 4), nn.Linear(16, 3)
        self.up, self.down = nn.Parameter(torch.randn(4, 24, 16) / 4), nn.Parameter(torch.randn(4, 24, 16) / 4)
        self.count, self.together = count, together

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        shares, chosen = self.gate(h).softmax(-1).topk(2, -1)
        if self.together:
            shares = torch.zeros(len(h), 4).scatter(1, chosen, shares)
            mixed = self.experts(h.expand(4, -1, -1).contiguous(), None)
            return self.last(h + (mixed * shares.T[..., None]).sum(0))
        order = chosen.flatten().argsort()
        ends = self.count(chosen.flatten()[order]).cumsum(0).int()
        rows = self.experts(h[order // 2], ends) * shares.flatten()[order, None]
        return self.last(h + rows[order.argsort()].view(len(h), 2, -1).sum(1))

    def experts(self, rows: Tensor, ends: Tensor | None) -> Tensor:
        hidden = F.grouped_mm(rows, self.up.transpose(-1, -2), offs=ends).relu()
        return F.grouped_mm(hidden, self.down, offs=ends)


def networks() -> dict[str, Experts]:
    return {**{name: Experts(count) for name, count in COUNTS.items()}, "together": Experts(torch.bincount, True)}


@pytest.mark.parametrize("name", networks())
def test_experts_lose_the_same_channels_as_under_a_mask(name: str) -> None:
    model, example, groups = prepared(networks()[name], (ROWS,), torch.float32)
    plan = groups.plan(random_units(groups))
    assert set(plan.removed) == {"first", "up"}
    assert masked_error(model, copy.deepcopy(model), plan, example) < 1e-5


def test_what_remains_lies_in_blocks_of_sixteen_bytes() -> None:
    assert {g.name: g.num_channels for g in find_groups(Experts(COUNTS["histc"]), ROWS)} == {"first": 4, "up": 6}


def test_experts_themselves_are_not_removed() -> None:
    groups = find_groups(Experts(COUNTS["histc"]), ROWS)
    assert all(found.dim for group in groups for found in group.slices if found.tensor in ("up", "down"))


def test_a_run_that_needs_values_is_no_holder_of_tensors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PruningWarning)
        assert find_groups(Experts(COUNTS["bincount"]), ROWS).num_units
