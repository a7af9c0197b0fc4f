"""Attributes that the first forward pass sets, after the network was analysed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune import VerificationError, find_groups, prune_
from lightning_taylor_prune.groups.late_values import LateValues, unset_attributes
from tests.networks import conv
from tests.oracles import mask_readers_, relative_error

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Lazy(nn.Module):
    """Sets a value in its first forward pass, by operators that later ones do not run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = conv(3, 12), conv(12, 4)
        self.value: Any = None

    def found(self, x: Tensor) -> object:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.value is None:
            self.value = self.found(h)
        return self.last(h * self.scale(h))

    def scale(self, h: Tensor) -> object:
        return self.value


class Resolution(Lazy):
    """As the scales of a detector's pooling: from the sizes of images."""

    def found(self, x: Tensor) -> object:
        return [1.0 / torch.zeros_like(x).size(-1)]

    def scale(self, h: Tensor) -> object:
        return self.value[0]


class Width(Lazy):
    """From the number of channels, which a cut changes, and the value does not."""

    def found(self, x: Tensor) -> object:
        return torch.zeros_like(x).size(1)

    def scale(self, h: Tensor) -> object:
        return self.value / h.size(1)


class Counting(Lazy):
    """Holds a tensor."""

    def found(self, x: Tensor) -> object:
        return torch.ones(1, dtype=x.dtype)


def test_a_value_that_depends_on_no_channel_may_be_set_in_between() -> None:
    model = Resolution().double()
    plan = find_groups(model, IMAGES).plan({"first": [1, 5, 7]})
    model(IMAGES)
    masked = mask_readers_(copy.deepcopy(model), plan)
    prune_(model, plan)
    assert relative_error(model(IMAGES), masked(IMAGES)) < 1e-12


@pytest.mark.parametrize("network", [Width, Counting], ids=lambda n: n.__name__)
def test_a_value_that_the_cut_would_change_is_refused(network: type[Lazy]) -> None:
    model = network().double()
    groups = find_groups(model, IMAGES)
    model(IMAGES)
    with pytest.raises(VerificationError):
        prune_(model, groups.plan({"first": [1, 5, 7]}))


def test_only_plain_values_that_were_none_before_are_late() -> None:
    model = Resolution()
    unset = unset_attributes(model)
    assert not LateValues(model, unset)
    model.value = [0.5]
    late = LateValues(model, unset)
    assert late and not late.came_again()
    late.look()
    assert late.came_again()
