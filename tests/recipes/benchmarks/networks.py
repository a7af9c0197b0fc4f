"""Networks of a few hundred parameters that do as they should, that do not, and that would run forever."""

from __future__ import annotations

import os
from functools import partial

import torch
from torch import Tensor, nn

from recipes.benchmarks.coverage_models import Built, Entry, images


class Restless(nn.Sequential):
    """Returns more with every call, so that its pruned self never equals its masked self."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.register_buffer("factor", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.factor.mul_(2)
        for layer in self:
            x = layer(x)
        return x * self.factor


class Ordered(nn.Sequential):
    """Sums over the channels before each one: none of the first layer's can be removed."""

    def forward(self, x: Tensor) -> Tensor:
        return self[2](self[0](x).cumsum(1))


class Valued(nn.Sequential):
    """Works out the size of what it returns outside of torch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, : sum(x.untyped_storage().tolist()) % 2 + 1]


def small(kind: type[nn.Sequential] = nn.Sequential) -> Built:
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)
    return Built(kind(*layers), images(8))


def unbuildable() -> Built:
    raise ValueError("no such network")


def crashing() -> Built:
    os._exit(3)


def endless() -> Built:
    while True:
        pass


ENTRIES = [
    Entry("tiny/good", small),
    Entry("tiny/unbuildable", unbuildable),
    Entry("tiny/crashing", crashing),
    Entry("tiny/restless", partial(small, Restless)),
    Entry("tiny/valued", partial(small, Valued), refusal=True),
    Entry("tiny/last", small),
    Entry("stuck/endless", endless),
]
