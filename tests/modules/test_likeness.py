"""Which modules have the same parameters, and whose values are alike."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_taylor_prune.modules.likeness import (
    Twin,
    correlation,
    likely_twins,
    named_as_average,
    sums,
    twin_candidates,
)
from tests.lightning_modules import small_network


class Both(nn.Module):
    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.online, self.other = small_network(), other


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def changed(module: nn.Module, share: float) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.lerp_(torch.randn_like(parameter), share)
    return module


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (frozen(copy.deepcopy(small_network())), [Twin("other", "online")]),
        (frozen(changed(copy.deepcopy(small_network()), 0.01)), [Twin("other", "online")]),
        (frozen(small_network(seed=1)), []),
        (copy.deepcopy(small_network()), []),
        (frozen(nn.ModuleDict({"average": copy.deepcopy(small_network())})), [Twin("other.average", "online")]),
    ],
    ids=["equal", "nearly equal", "drawn apart", "trained itself", "inside a wrapper"],
)
def test_a_frozen_module_with_like_values_is_a_likely_twin(other: nn.Module, expected: list[Twin]) -> None:
    assert likely_twins(Both(other)) == expected


def test_norms_that_nothing_has_trained_are_not_alike() -> None:
    module = Both(frozen(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(8))))
    assert [(c.twin.follower, c.alike) for c in twin_candidates(module)] == [("other.1", False)]


def test_what_no_gradient_has_reached_may_follow_what_one_has() -> None:
    module = Both(copy.deepcopy(small_network()))
    module.online(torch.zeros(2, 1, 8, 8)).sum().backward()
    assert likely_twins(module) == [Twin("other", "online")]


def test_correlation_is_that_of_the_deviations() -> None:
    a, b = [torch.randn(5, 4), torch.randn(4)], [torch.randn(5, 4), torch.randn(4)]
    deviations = [torch.cat([(t - t.mean()).flatten() for t in tensors]) for tensors in (a, b)]
    expected = torch.nn.functional.cosine_similarity(*deviations, dim=0)
    assert correlation(a, b) == pytest.approx(expected.item(), abs=1e-6)


def test_sums_are_in_the_order_of_the_tensors() -> None:
    assert sums(iter([torch.ones(3), torch.zeros(2), torch.full((2,), 4.0)])).tolist() == [3, 0, 8]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["ModelEmaV3", "module"], True),
        (["ema_model"], True),
        (["AveragedModel"], True),
        (["teacher"], False),
        (["schema", "remainder"], False),
    ],
)
def test_names_may_say_that_something_is_an_average(names: list[str], expected: bool) -> None:
    assert named_as_average(names) == expected
