"""A teacher is the network as it was."""

from __future__ import annotations

import pytest
import torch

from lightning_taylor_prune import Teacher, find_groups, prune_
from lightning_taylor_prune.errors import ArgumentError
from tests.lightning_modules import small_network

IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_it_does_not_change_with_the_network() -> None:
    network = small_network().eval()
    teacher, before = Teacher.copy_of(network), network(IMAGES)
    prune_(network, find_groups(network, IMAGES).plan({"0": [1, 2]}))
    assert torch.equal(teacher(IMAGES), before)


def test_it_leaves_the_mode_and_the_gradients_of_the_network_alone() -> None:
    network = small_network().train()
    Teacher.copy_of(network)
    assert network.training and all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_another_type_gives_nearly_the_same_in_the_type_of_the_arguments(dtype: torch.dtype) -> None:
    network = small_network()
    output = Teacher.copy_of(network, dtype=dtype)(IMAGES)
    torch.testing.assert_close(output, Teacher.copy_of(network)(IMAGES), rtol=0.05, atol=0.02)


def test_it_takes_the_state_of_one_that_was_pruned_before() -> None:
    pruned = small_network()
    prune_(pruned, find_groups(pruned, IMAGES).plan({"0": [0, 3, 5]}))
    teacher = Teacher.copy_of(small_network(seed=1))
    teacher.load_state_dict(Teacher.copy_of(pruned).state_dict())
    assert torch.equal(teacher(IMAGES), pruned.eval()(IMAGES))


def test_an_integer_type_is_refused() -> None:
    with pytest.raises(ArgumentError, match="floating-point"):
        Teacher.copy_of(small_network(), dtype=torch.int8)
