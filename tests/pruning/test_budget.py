"""How much each prune removes."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_taylor_prune import ArgumentError
from lightning_taylor_prune.pruning.budget import Budget, Share
from lightning_taylor_prune.pruning.constraints import Constraints
from tests.pruning.test_select import GROUPS

HALF = Constraints(stop_at={"filters": 0.5})  # 17.5 of 35 filters


@pytest.mark.parametrize(
    ("budget", "constraints", "share"),
    [
        (Budget(5, 10), HALF, Share(5)),
        (Budget(None, 10), Constraints(), Share(8)),
        (Budget(None, None), HALF, Share(8)),
        (Budget(None, 10), HALF, Share(None, {"filters": 35 - 5.25})),
        (Budget(None, 10, "cubic"), HALF, Share(None, {"filters": 35 - 17.5 * (1 - 0.7**3)})),
        (Budget(None, 10, lambda t: t * t), HALF, Share(None, {"filters": 35 - 17.5 * 0.09})),
        (Budget(None, 3), HALF, Share(None)),
        (Budget(None, 2), HALF, Share(None)),
        (Budget(None, 10, lambda t: float(t > 0.2)), HALF, Share(None)),
    ],
    ids=["number", "no target", "no limit", "linear", "cubic", "function", "last", "past the last", "early end"],
)
def test_share_of_the_third_prune(budget: Budget, constraints: Constraints, share: Share) -> None:
    found = budget.share(GROUPS, constraints, 3)
    assert (found.wanted, found.floors and {k: pytest.approx(v) for k, v in found.floors.items()}) == (
        share.wanted,
        share.floors,
    )


def test_all_targets_have_a_floor() -> None:
    share = Budget(None, 4).share(GROUPS, Constraints(stop_at={"params": 0.5, "macs": 0.5}), 1)
    assert share.floors is not None and list(share.floors) == ["params", "macs"]


def test_rest_of_the_way_is_spread_where_more_prunes_are_to_come_than_were_planned() -> None:
    ahead = GROUPS.after(GROUPS.plan({"0": range(5), "2": range(9)}))  # 21 filters, with 5 of 10 prunes to come
    share = Budget(None, 10).share(ahead, HALF, 6)
    assert share.floors == {"filters": pytest.approx(21 - 3.5 / 5)}


def test_prune_that_is_behind_catches_up() -> None:
    assert Budget(None, 10).share(GROUPS, HALF, 6).floors == {"filters": pytest.approx(35 - 17.5 * 0.6)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filters": 0}, "`filters_per_prune` to be an int of at least 1, but got 0"),
        ({"prunes": 2.5}, "`max_prunes` to be an int of at least 1, but got 2.5"),
        ({"schedule": "quadratic"}, '`schedule` to be "linear", "cubic" or a function, but got \'quadratic\''),
        ({"schedule": 3}, "or a function, but got 3"),
        ({"schedule": lambda t: 1 - t}, "never falls, but from 0 to 0.01 it falls to 0.99"),
        ({"schedule": lambda t: t / 2}, "that gives 1 at 1, .* but got 0.5"),
        ({"schedule": lambda t: 2 * t}, r"numbers in \[0, 1\], but at 0.51 it gives 1.02"),
        ({"schedule": lambda t: float("nan")}, r"numbers in \[0, 1\], but at 0 it gives nan"),
        ({"schedule": lambda t: "half"}, "but at 0 it gives 'half'"),
    ],
    ids=["filters", "prunes", "name", "type", "falls", "short", "above 1", "nan", "words"],
)
def test_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Budget(**arguments)
