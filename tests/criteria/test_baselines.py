"""Magnitude and random order."""

from __future__ import annotations

import torch

from lightning_taylor_prune.criteria.criterion import CRITERIA
from tests.criteria.measured import build, per_group


def test_magnitude_is_the_norm_of_all_writers() -> None:
    model, _, groups = build("residual")
    actual = per_group(groups, CRITERIA["magnitude"](model, groups).compute())["stem"]
    torch.testing.assert_close(
        actual, torch.cat([model.stem.weight, model.b.weight], 1).flatten(1).norm(dim=1).detach()
    )


def test_random_follows_the_seed() -> None:
    model, _, groups = build("residual")
    state = torch.get_rng_state()
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        orders.append(CRITERIA["random"](model, groups).compute())
    torch.set_rng_state(state)
    assert orders[0].equal(orders[1]) and not orders[0].equal(orders[2])
