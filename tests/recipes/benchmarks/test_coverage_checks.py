"""What the checks of a coverage run choose, fill, compare and refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune import find_groups
from recipes.benchmarks.coverage_checks import half_of, prepared, relative_difference, training_step
from recipes.benchmarks.coverage_models import Built, images
from tests.recipes.benchmarks.networks import small


def test_half_is_removed_of_every_wanted_group_and_of_no_other() -> None:
    model = nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(3)))
    plan = half_of(find_groups(model, torch.zeros(1, 8, 4, 4)), lambda group: group.name == "1")
    assert {name: len(units) for name, units in plan.removed.items()} == {"1": 4}


def test_zeros_and_ones_are_filled_before_anything_is_compared() -> None:
    norm = nn.BatchNorm2d(8)
    nn.init.zeros_(norm.weight)
    prepared(Built(nn.Sequential(norm), images(8)))
    assert all(t.unique().numel() == 8 for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var))


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        pytest.param(torch.zeros(2), "shapes", id="another shape"),
        pytest.param(torch.full((3,), torch.nan), "not finite", id="not finite"),
    ],
)
def test_difference_refuses(actual: Tensor, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        relative_difference([actual], [torch.ones(3)])


def test_difference_is_relative_to_the_largest_value_of_each_tensor() -> None:
    expected = [torch.tensor([1.0, 100.0]), torch.tensor([0.1])]
    assert relative_difference([expected[0] + 1, expected[1] * 1.5], expected) == pytest.approx(0.5)


def test_training_step_wants_something_to_move() -> None:
    built = small()
    nn.init.zeros_(built.model[2].weight)
    nn.init.zeros_(built.model[2].bias)
    with pytest.raises(AssertionError, match="moved no parameter"):
        training_step(built)
