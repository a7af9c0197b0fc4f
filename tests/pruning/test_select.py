"""Choosing units: rank, constraints, targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_taylor_prune import PlanError, find_groups, select
from lightning_taylor_prune.pruning.constraints import Constraints
from lightning_taylor_prune.pruning.costs import COSTS
from lightning_taylor_prune.pruning.select import choose


def network() -> nn.Sequential:
    """Three groups: `0` with 6 channels, `2` with 10, `4` with 4 grouped pairs."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 10, 3), nn.ReLU(), nn.Conv2d(10, 8, 1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 3, 1),
    )  # fmt: skip


GROUPS = find_groups(network(), torch.zeros(1, 3, 8, 8))


def removed(scores: Any, count: int, **options: Any) -> dict[str, tuple[int, ...]]:
    return dict(select(GROUPS, torch.as_tensor(scores, dtype=torch.float64), count, **options).removed)


def kept(plan: Any) -> dict[str, int]:
    return {g.name: g.num_channels for g in GROUPS.after(plan)}


def test_the_groups_are_as_described() -> None:
    assert {g.name: (g.num_channels, g.width) for g in GROUPS} == {"0": (6, 1), "2": (10, 1), "4": (4, 2)}


def test_lowest_scores_are_removed_wherever_they_are() -> None:
    scores = torch.arange(20.0)
    scores[[3, 8, 17]] = torch.tensor([-3.0, -2.0, -1.0])
    assert removed(scores, 3) == {"0": (3,), "2": (2,), "4": (1,)}


def test_of_equal_scores_the_earlier_group_and_channel_is_removed() -> None:
    assert removed(torch.zeros(20), 2) == {"0": (0, 1)}


def test_nan_is_never_chosen() -> None:
    scores = torch.full((20,), torch.nan)
    scores[7] = 1e9
    assert removed(scores, 5) == {"2": (1,)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"min_channels": 5}, {"0": 5, "2": 5, "4": 4}),
        ({"max_pruning_ratio": 0.5}, {"0": 3, "2": 5, "4": 2}),
        ({"round_to": 4}, {"0": 4, "2": 4, "4": 2}),
        ({"exclude": ["2"]}, {"0": 1, "2": 10, "4": 1}),
        ({"exclude": ["[04]"]}, {"0": 6, "2": 1, "4": 4}),
        ({"exclude": ["6"]}, {"0": 1, "2": 1, "4": 4}),
    ],
    ids=["min_channels", "max_pruning_ratio", "round_to", "exclude", "exclude pattern", "exclude a coupled layer"],
)
def test_constraint_holds_when_everything_is_asked_for(options: dict[str, Any], expected: dict[str, int]) -> None:
    assert kept(select(GROUPS, torch.rand(20), 20, **options)) == expected


def test_max_pruning_ratio_counts_from_the_original_size() -> None:
    once = GROUPS.after(select(GROUPS, torch.arange(20.0), 3))
    again = select(once, torch.arange(17.0), 17, max_pruning_ratio=0.5)
    assert {g.name: g.num_channels for g in once.after(again)} == {"0": 3, "2": 5, "4": 2}


def test_a_block_larger_than_the_step_is_removed_by_itself() -> None:
    assert len(select(GROUPS, torch.arange(20.0), 1, round_to=8, exclude=["0", "4"])) == 2


@given(
    scores=st.lists(st.floats(-1e6, 1e6), min_size=20, max_size=20),
    count=st.integers(0, 20),
    round_to=st.sampled_from([1, 2, 4]),
    min_channels=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_no_unit_is_kept_that_scores_below_a_removed_one_of_its_group(
    scores: list[float], count: int, round_to: int, min_channels: int
) -> None:
    plan = select(
        GROUPS, torch.tensor(scores, dtype=torch.float64), count, round_to=round_to, min_channels=min_channels
    )
    for group in GROUPS:
        own = np.array(scores)[group.first_unit : group.first_unit + group.num_channels]
        taken = np.isin(np.arange(len(own)), plan.removed.get(group.name, ()))
        assert not taken.any() or own[taken].max() <= own[~taken].min()


@given(fraction=st.floats(0.05, 1.0), cost=st.sampled_from(list(COSTS)), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_target_is_never_overshot(fraction: float, cost: str, seed: int) -> None:
    scores = torch.rand(20, generator=torch.Generator().manual_seed(seed))
    after = GROUPS.after(select(GROUPS, scores, 20, stop_at={cost: fraction}))
    assert COSTS[cost](after) >= fraction * COSTS[cost](GROUPS)


@pytest.mark.parametrize(
    ("count", "options", "reason"),
    [
        (2, Constraints(), None),
        (20, Constraints(), "nothing_left"),
        (9, Constraints(stop_at={"params": 0.9}), "target"),
    ],
    ids=["enough", "nothing more to remove", "target"],
)
def test_reason_for_fewer_units(count: int, options: Constraints, reason: str | None) -> None:
    assert choose(GROUPS, torch.arange(20.0), count, options).reason == reason


def test_fraction_of_all_units() -> None:
    assert len(select(GROUPS, torch.arange(20.0), pruning_ratio=0.25)) == 5


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        (torch.rand(19), {"num_units": 1}, r"shape \(20,\), but got \(19,\)"),
        (torch.rand(20), {}, "exactly one"),
        (torch.rand(20), {"num_units": 1, "stop_at": {"flops": 1}}, "flops"),
        (torch.rand(20), {"num_units": 1, "exclude": ["conv9"]}, "conv9"),
        (torch.rand(20), {"num_units": 1, "round_to": "best"}, "`round_to` to be one of auto"),
        (torch.rand(20), {"num_units": 1, "latency": 3.0}, "a `LatencyTable`, or a dict.*3.0"),
    ],
    ids=["scores", "how many", "stop_at", "exclude", "round_to", "no table"],
)
def test_wrong_argument_is_named(scores: torch.Tensor, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        select(GROUPS, scores, **arguments)


# --- targets --------------------------------------------------------------------------------------------------------

WIDE = find_groups(
    nn.Sequential(
        nn.Conv2d(3, 80, 3), nn.ReLU(inplace=True), nn.Conv2d(80, 192, 3), nn.ReLU(inplace=True),
        nn.Conv2d(192, 80, 3), nn.ReLU(inplace=True), nn.Conv2d(80, 8, 3),
    ),
    torch.zeros(4, 3, 12, 12),
)  # fmt: skip


def choice(stop_at: dict[str, float], wanted: int | None, seed: int = 0, **options: Any) -> Any:
    scores = torch.rand(WIDE.num_units, generator=torch.Generator().manual_seed(seed))
    return choose(WIDE, scores, wanted, Constraints(stop_at=stop_at, **options))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cost", COSTS)
def test_target_is_reached_within_one_per_cent(cost: str, seed: int) -> None:
    found = choice({cost: 0.6}, None, seed)
    floor = 0.6 * COSTS[cost](WIDE)
    assert found.reason == "target" and floor <= COSTS[cost](WIDE.after(found.plan)) <= 1.01 * floor


def test_absolute_target_is_exact_where_units_allow_it() -> None:
    assert WIDE.after(choice({"filters": 200}, None).plan).num_filters == 200


def test_of_several_targets_none_is_undercut() -> None:
    after = WIDE.after(choice({"params": 0.5, "macs": 0.6, "filters": 180}, None).plan)
    assert after.params >= 0.5 * WIDE.params and after.macs >= 0.6 * WIDE.macs and after.num_filters >= 180


def test_several_targets_are_reached_together() -> None:
    alone = [WIDE.after(choice(stop_at, None).plan) for stop_at in ({"params": 0.6}, {"filters": 0.8})]
    assert alone[0].num_filters < 0.78 * WIDE.num_filters and alone[1].params > 0.62 * WIDE.params
    both = WIDE.after(choice({"params": 0.6, "filters": 0.8}, None).plan)
    assert 0.6 <= both.params / WIDE.params <= 0.606 and 0.8 <= both.num_filters / WIDE.num_filters <= 0.808


def test_targets_that_plain_scores_reach_together_leave_the_ranking_alone() -> None:
    plain = choice({"params": 0.6}, None).plan
    macs = WIDE.after(plain).macs / WIDE.macs
    both = choice({"params": 0.6, "macs": 0.999 * macs}, None).plan
    assert plain.removed == both.removed


def test_unit_that_would_undercut_is_passed_over_for_those_that_fit() -> None:
    scores = torch.arange(20.0)  # group `0` first, whose units cost most
    floor = GROUPS.params - 65  # a unit of `0` saves 118, of `2` 63, of `4` (two filters) 66
    found = choose(GROUPS, scores, None, Constraints(stop_at={"params": floor}))
    assert (dict(found.plan.removed), found.reason) == ({"2": (0,)}, "target")


def test_group_whose_next_unit_does_not_fit_gives_none_of_higher_score() -> None:
    scores = torch.arange(WIDE.num_units).double()
    plan = choose(WIDE, scores, None, Constraints(stop_at={"params": 0.5})).plan
    assert all(units == tuple(range(len(units))) for units in plan.removed.values())


def test_number_of_units_also_bounds_what_fits() -> None:
    assert len(choice({"params": 0.6}, 30).plan) == 30


def test_target_that_is_undercut_already_takes_nothing() -> None:
    small = GROUPS.after(GROUPS.plan({"0": [0, 1, 2]}))
    found = choose(small, torch.zeros(small.num_units), 5, Constraints(stop_at={"params": 0.9}))
    assert (len(found.plan), found.reason) == (0, "target")


def test_way_to_a_target_keeps_the_order_of_scores() -> None:
    floor = 0.9 * WIDE.params
    found = choose(WIDE, torch.arange(WIDE.num_units), None, Constraints(stop_at={"params": 0.5}), {"params": floor})
    assert found.reason is None and set(found.plan.removed) == {"0"} and WIDE.after(found.plan).params >= floor


class Table:
    """A latency in milliseconds that is measured nowhere."""

    def latency(self, groups: Any) -> float:
        return 1 + 2e-6 * groups.macs

    def unit_latency(self, groups: Any) -> torch.Tensor:
        return torch.ones(groups.num_units, dtype=torch.float64)

    def best_multiple(self, groups: Any) -> dict[str, int]:
        return {group.name: 1 if group.original_num_channels < 10 else 4 for group in groups}


def test_latency_is_read_from_the_table_that_is_handed_in() -> None:
    table, scores = Table(), torch.arange(WIDE.num_units)
    after = WIDE.after(select(WIDE, scores, WIDE.num_units, stop_at={"latency": 0.7}, latency=table))
    floor = 0.7 * table.latency(WIDE)
    assert floor <= table.latency(after) <= 1.03 * floor


def test_auto_rounds_the_channels_of_each_group_to_its_own_multiple() -> None:
    scores = torch.arange(WIDE.num_units)
    after = WIDE.after(select(WIDE, scores, pruning_ratio=0.3, round_to="auto", latency=Table()))
    multiples = Table().best_multiple(WIDE)
    changed = [g for g in after if g.num_channels < g.original_num_channels]
    assert changed and all(g.num_channels % multiples[g.name] == 0 for g in changed)
