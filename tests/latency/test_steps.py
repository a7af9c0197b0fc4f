from __future__ import annotations

import pytest

from lightning_taylor_prune.latency.steps import stages, step_of
from tests.latency.clocks import wide
from tests.latency.test_curves import PARTS


@pytest.mark.parametrize("make", PARTS.values(), ids=PARTS)
def test_grid_begins_unpruned_and_stays_within_the_axes(make):
    part = make()
    (first, *_), *others = stages(part)
    assert first == part.full
    assert all(1 <= u <= full for stage in others for units in stage for u, full in zip(units, part.full, strict=True))


@pytest.mark.parametrize("step", [1, 4, 8, 16, 32])
def test_every_step_is_on_the_grid(step):
    part = PARTS["line"]()
    assert part.full == (wide()["0"].num_channels,)
    assert sum(step_of(units[0]) == step for stage in stages(part) for units in stage) >= 2
