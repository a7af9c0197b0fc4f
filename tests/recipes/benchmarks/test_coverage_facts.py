"""What share of a network's parameters can be removed."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_taylor_prune import find_groups
from recipes.benchmarks.coverage_facts import shares_of
from tests.recipes.benchmarks.networks import Ordered, small


@pytest.mark.parametrize(
    ("kind", "counts", "reason"),
    [
        pytest.param(nn.Sequential, {"prunable": 512, "locked": 0, "ends": 4}, None, id="all but the last bias"),
        pytest.param(
            Ordered, {"prunable": 0, "locked": 512, "ends": 4}, "is used by an operator that depends on", id="nothing"
        ),
    ],
)
def test_shares(kind: type[nn.Sequential], counts: dict[str, int], reason: str | None) -> None:
    built = small(kind)
    shares, reasons = shares_of(find_groups(built.model, built.args))
    assert {key: round(share * 516) for key, share in shares.items()} == counts
    assert reason is None or any(why.startswith(reason) for why in reasons)
    assert sum(reasons.values()) == counts["locked"]
