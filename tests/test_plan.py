"""Plans by hand: what they say, what they refuse, and that equal plans have equal digests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_taylor_prune.errors import PlanError
from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.plan import Cut
from tests.networks import NETWORKS


@pytest.fixture(scope="module")
def groups() -> ChannelGroups:
    network = NETWORKS["conv_bn"]
    return find_groups(network.build(), network.example())


def test_a_plan_cuts_every_axis_that_the_channels_touch(groups: ChannelGroups) -> None:
    cuts = {(c.tensor, c.dim): (c.size, c.keep.tolist()) for c in groups.plan({"0": [9, 3, 3]}).cuts}
    kept = (10, [0, 1, 2, 4, 5, 6, 7, 8])
    names = ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert cuts == {**{(name, 0): kept for name in names}, ("3.weight", 1): kept}


def test_units_are_sorted_and_count_once(groups: ChannelGroups) -> None:
    plan = groups.plan({"0": [9, 3, 3], "3": [np.int64(1)]})
    assert (dict(plan.removed), len(plan), bool(plan)) == ({"0": (3, 9), "3": (1,)}, 3, True)


@pytest.mark.parametrize("nothing", [{}, {"0": []}], ids=["no_group", "no_unit"])
def test_an_empty_plan_is_false(groups: ChannelGroups, nothing: Mapping[str, Sequence[int]]) -> None:
    plan = groups.plan(nothing)
    assert (bool(plan), len(plan), plan.cuts) == (False, 0, ())


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"conv9": [1]}, r"no group `conv9`; the groups are 0, 3"),
        ({"0": [2, 10]}, r"`0` has the channels 0 ... 9, but the plan removes \(2, 10\)"),
        ({"0": [-1]}, r"`0` has the channels 0 ... 9, but the plan removes \(-1,\)"),
        ({"0": list(range(10))}, r"removes all 10 channels of group `0`; at least one must be kept"),
        ({"0": [1.0]}, r"Expected positions \(ints\) or a bool for every unit of group `0`, but got 1.0"),
        ({"0": "12"}, r"for every unit of group `0`, but got '1'"),
        ({"0": [True, 2]}, r"for every unit of group `0`, but got True"),
        ({"0": np.array([0.5, 1.0])}, r"for every unit of group `0`, but got 0.5"),
        ({"0": [True] * 9}, r"Expected 10 bools for group `0`, one per unit, but got 9"),
    ],
    ids=["missing_group", "too_large", "negative", "all", "float", "text", "mixed", "array", "short_mask"],
)
def test_impossible_plans_are_refused_by_name(
    groups: ChannelGroups, removed: Mapping[str, Sequence[int]], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        groups.plan(removed)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["list", "numpy", "torch"])
def test_a_bool_for_every_unit_marks_what_is_removed(groups: ChannelGroups, kind: Callable[..., Any]) -> None:
    assert groups.plan({"0": kind([i in (2, 5) for i in range(10)])}).removed == {"0": (2, 5)}


def test_cuts_come_tensor_by_tensor(groups: ChannelGroups) -> None:
    plan = groups.plan({"0": [1], "3": [2]})
    assert {name: [c.dim for c in cuts] for name, cuts in plan.by_tensor()}["3.weight"] == [0, 1]


def test_kept_positions_cannot_be_written_to(groups: ChannelGroups) -> None:
    (cut, *_) = groups.plan({"0": [1]}).cuts
    with pytest.raises(ValueError, match="read-only"):
        cut.keep[0] = 5


UNITS = st.fixed_dictionaries(
    {"0": st.sets(st.integers(0, 9), max_size=9), "3": st.sets(st.integers(0, 13), max_size=9)}
)


@given(UNITS, UNITS)
def test_digests_are_equal_exactly_for_equal_plans(
    groups: ChannelGroups, a: dict[str, set[int]], b: dict[str, set[int]]
) -> None:
    one, other = ({name: sorted(units, reverse=True) for name, units in plan.items()} for plan in (a, b))
    assert (groups.plan(one).digest() == groups.plan(other).digest()) == (a == b)


def test_a_digest_depends_on_tensor_axis_and_size(groups: ChannelGroups) -> None:
    from lightning_taylor_prune.plan import PruningPlan

    keep = np.array([0, 1])
    cuts = [Cut("a", 0, 4, keep), Cut("b", 0, 4, keep), Cut("a", 1, 4, keep), Cut("a", 0, 5, keep)]
    assert len({PruningPlan({}, (cut,), groups).digest() for cut in cuts}) == 4


@given(UNITS)
def test_groups_after_a_plan_hold_the_kept_units(groups: ChannelGroups, removed: dict[str, set[int]]) -> None:
    plan = groups.plan({name: sorted(units) for name, units in removed.items()})
    after = groups.after(plan)
    assert {g.name: g.num_channels for g in after} == {g.name: g.num_channels - len(removed[g.name]) for g in groups}
    assert {name: kept.tolist() for name, kept in after.kept_units().items()} == {
        g.name: sorted(set(range(g.num_channels)) - removed[g.name]) for g in groups
    }
