"""What units are compared by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune import ArgumentError, Pruner, TaylorPruningCallback, find_groups, prune_, select
from lightning_taylor_prune.groups.unit_costs import unit_costs
from lightning_taylor_prune.pruning.costs import COSTS
from lightning_taylor_prune.pruning.rank_by import rank_scores
from tests.lightning_modules import Classifier, loader, trainer
from tests.pruning.test_select import GROUPS, Table


def some_scores(seed: int = 0) -> Tensor:
    return torch.rand(GROUPS.num_units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("cost", COSTS)
def test_cost_of_a_unit_is_what_the_network_saves_without_it(cost: str) -> None:
    saved = unit_costs(GROUPS, COSTS[cost])
    for group in GROUPS:
        for unit in range(group.num_channels):
            after = GROUPS.after(GROUPS.plan({group.name: [unit]}))
            assert saved[group.first_unit + unit] == COSTS[cost](GROUPS) - COSTS[cost](after)


def test_unit_that_is_read_twice_saves_both() -> None:
    class Twice(nn.Module):
        """Each channel of `first` is read at two places of `second`."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second(torch.cat([x, x], 1))

    groups = find_groups(Twice(), torch.zeros(2, 4))
    assert unit_costs(groups, COSTS["params"]).tolist() == [4 + 1 + 2 * 3] * 6


@pytest.mark.parametrize(("rank_by", "cost"), [("score_per_param", "params"), ("score_per_mac", "macs")])
def test_score_is_divided_by_what_the_unit_saves(rank_by: Any, cost: str) -> None:
    saved = unit_costs(GROUPS, COSTS[cost])
    ranked = rank_scores(some_scores(), GROUPS, rank_by)
    torch.testing.assert_close(ranked, some_scores() / (saved / saved.mean()))


def test_cost_follows_as_the_network_shrinks() -> None:
    small = GROUPS.after(GROUPS.plan({"2": range(8)}))
    ones = torch.ones(small.num_units)
    ratios = [rank_scores(torch.ones(g.num_units), g, "score_per_param") for g in (GROUPS, small)]
    assert ratios[0][0] < ratios[0][6] and ratios[1][0] > ratios[1][6] and len(ones) == len(ratios[1])


def test_latency_of_units_comes_from_the_table() -> None:
    class Steps(Table):
        def unit_latency(self, groups: Any) -> Tensor:
            return torch.arange(1, groups.num_units + 1)

    ranked = rank_scores(torch.ones(20), GROUPS, "score_per_ms", Steps())
    torch.testing.assert_close(ranked, 10.5 / torch.arange(1.0, 21.0, dtype=torch.float64))


def test_unit_that_saves_nothing_is_removed_last() -> None:
    net = nn.Sequential(nn.Embedding(50, 12), nn.Linear(12, 8), nn.Linear(8, 3))
    groups = find_groups(net, torch.zeros(2, 5, dtype=torch.long))
    scores = torch.ones(groups.num_units)
    ranked = rank_scores(scores, groups, "score_per_mac")
    assert ranked.isfinite().all()


def test_negative_score_is_lower_for_what_saves_more() -> None:
    ranked = rank_scores(-torch.ones(20), GROUPS, "score_per_param")
    assert ranked.argmin() == unit_costs(GROUPS, COSTS["params"]).argmax()


@pytest.mark.parametrize("rank_by", ["score_per_param", "isomorphic"])
def test_unit_without_score_has_none(rank_by: Any) -> None:
    scores = some_scores()
    scores[3] = torch.nan
    ranked = rank_scores(scores, GROUPS, rank_by)
    assert ranked.isnan().nonzero().tolist() == [[3]]


# --- isomorphic -----------------------------------------------------------------------------------------------------


class Blocks(nn.Module):
    """Three equal blocks, the middle one with wider hidden layer, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(10), nn.Linear(10, width), nn.GELU(), nn.Linear(width, 10))
            for width in (8, 16, 8)
        )
        self.head = nn.Sequential(nn.Linear(10, 20), nn.LayerNorm(20), nn.Linear(20, 2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def block_groups() -> Any:
    return find_groups(Blocks(), torch.zeros(2, 3, 10))


HIDDEN, HEAD = ("blocks.0.1", "blocks.1.1", "blocks.2.1"), "head.0"


def test_like_layers_compete_and_unlike_ones_give_the_same_share() -> None:
    groups = block_groups()
    scores = torch.ones(groups.num_units)
    for name, factor in zip((*HIDDEN, HEAD), (1, 100, 100, 1e6), strict=True):
        group = groups[name]
        own = torch.arange(1, group.num_channels + 1) * factor
        scores[group.first_unit : group.first_unit + group.num_channels] = own
    plan = select(groups, scores, pruning_ratio=0.25, rank_by="isomorphic", exclude=["blocks.*.3"])
    removed = {name: len(units) for name, units in plan.removed.items()}
    assert removed[HIDDEN[0]] == 7  # the lowest of 32 alike, one must be kept
    assert sum(removed.get(name, 0) for name in HIDDEN) / 32 == pytest.approx(removed[HEAD] / 20, abs=0.05)


def test_shares_are_of_the_network_before_it_was_pruned() -> None:
    groups = block_groups()
    once = groups.after(groups.plan({HEAD: range(10)}))
    ranked = rank_scores(torch.rand(once.num_units), once, "isomorphic")
    first = once[HEAD].first_unit
    assert ranked[first : first + 10].min() == 11 / 20


def test_within_a_class_the_order_of_scores_is_kept() -> None:
    groups = block_groups()
    scores = torch.rand(groups.num_units)
    ranked = rank_scores(scores, groups, "isomorphic")
    own = [slice(groups[n].first_unit, groups[n].first_unit + groups[n].num_channels) for n in HIDDEN]
    before, after = (torch.cat([values[part] for part in own]) for values in (scores, ranked))
    assert before.argsort().tolist() == after.argsort().tolist()


# --- as an argument -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank_by", ["score", "score_per_param", "score_per_mac", "isomorphic"])
def test_callback_prunes_by_it(rank_by: Any) -> None:
    callback = TaylorPruningCallback(every_n_steps=2, stop_at={"params": 0.6}, max_prunes=3, rank_by=rank_by)
    trainer(callback).fit(Classifier(), loader())
    assert callback.stop_reason == "target"


def test_per_param_removes_fewer_units_for_as_many_parameters() -> None:
    net = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 60), nn.ReLU(), nn.Linear(60, 2))
    groups = find_groups(net, torch.zeros(2, 4))
    scores = torch.rand(groups.num_units)
    by = {how: select(groups, scores, 90, stop_at={"params": 0.5}, rank_by=how) for how in (None, "score_per_param")}
    assert len(by["score_per_param"]) < len(by[None])
    prune_(net, by["score_per_param"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank_by": "cost"}, "`rank_by` to be one of score, .*, isomorphic, but got 'cost'"),
        ({"rank_by": 3}, "`rank_by` to be one of"),
    ],
    ids=["unknown", "type"],
)
def test_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Pruner(nn.Linear(3, 2), torch.zeros(1, 3), **arguments)
    with pytest.raises(ArgumentError, match=message):
        select(GROUPS, torch.zeros(20), 1, **arguments)
