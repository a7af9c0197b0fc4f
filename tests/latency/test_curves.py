from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_taylor_prune import find_groups
from lightning_taylor_prune.latency.curves import interpolate, time_of
from lightning_taylor_prune.latency.program import Program
from lightning_taylor_prune.latency.replay import Layout
from lightning_taylor_prune.latency.steps import stages
from tests.latency.clocks import affine, stepped, wide


def part_named(groups, name, free=1):
    parts = [part for part, _, _ in Program.of(groups, Layout(), on_cpu=False).parts]
    return next(p for p in parts if name in p.key and len(p.full) == free)


def square():
    model = nn.Sequential(nn.Conv2d(3, 64, 1), *[nn.Conv2d(64, 64, 3, padding=1) for _ in range(2)])
    model = nn.Sequential(model[0], Residual(model[1]), model[2])
    return find_groups(nn.Sequential(model, nn.Conv2d(64, 5, 1)), torch.zeros(1, 3, 8, 8))


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


PARTS = {
    "line": lambda: part_named(wide(), "aten.relu"),
    "plane": lambda: part_named(wide(), "aten.linear", 2),
    "square": lambda: part_named(square(), "aten.conv2d"),
    "input": lambda: part_named(wide(), "aten.linear"),
}


def points(part):
    return [units for stage in stages(part) for units in stage]


@pytest.mark.parametrize("make", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("clock", [affine, stepped(16), stepped(32)], ids=["affine", "16", "32"])
def test_curve_goes_through_everything_measured(make, clock):
    part = make()
    times = {units: clock(part, units) for units in points(part)}
    assert {units: time_of(part, times)(units) for units in times} == pytest.approx(times)


@pytest.mark.parametrize("make", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("known", [3, 8, 99], ids=lambda known: f"{known} points")
def test_more_units_never_take_less_time_where_that_was_measured(make, known):
    part = make()
    curve = time_of(part, {units: affine(part, units) for units in points(part)[:known]})
    rest = part.full[1:]
    times = [curve((units, *rest)) for units in range(1, part.full[0] + 1)]
    assert times == sorted(times)


def test_multiples_of_a_step_have_a_curve_of_their_own():
    part = part_named(wide(), "aten.linear")
    times = {u: 1.0 if u[0] % 16 == 0 else 2.0 for u in points(part)}
    curve = time_of(part, times)
    assert [curve((units,)) for units in (240, 192, 241, 199)] == [1, 1, 2, 2]


def test_one_time_is_scaled_in_proportion():
    part = part_named(wide(), "aten.linear", 2)
    assert time_of(part, {part.full: 8.0})((128, 64)) == pytest.approx(2)


@pytest.mark.parametrize(("x", "y"), [(2, 3), (3, 4), (4, 5), (6, 7), (1, 2), (0.25, 1.25)])
def test_straight_lines_go_on_outside(x, y):
    assert interpolate([(2.0, 3.0), (4.0, 5.0)], x) == y


def test_no_time_falls_below_proportional():
    assert interpolate([(2.0, 1.0), (4.0, 5.0)], 1.0) == 0.5
