"""The search does nothing twice whose outcome is known."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune import find_groups
from lightning_taylor_prune.groups import search


class Branches(nn.Module):
    """Sends a fixed number of channels through convolutions of their own, as InceptionNeXt does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(5, 5, 1, groups=5) for _ in range(3))
        self.sizes = (25, 5, 5, 5)
        self.mix = nn.Sequential(nn.BatchNorm2d(40), nn.Conv2d(40, 80, 1), nn.ReLU(), nn.Conv2d(80, 40, 1))

    def forward(self, x: Tensor) -> Tensor:
        same, a, b, c = x.split(self.sizes, 1)
        result: Tensor = x + self.mix(torch.cat([same, self.a(a), self.b(b), self.c(c)], 1))
        return result


def test_no_integers_are_looked_for_again_where_none_explained_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[tuple[Any, ...]] = Counter()
    find_size_rules = search.find_size_rules

    def counting(trial: Any, divergence: Any) -> Any:
        asked[divergence.site, divergence.message] += 1
        return find_size_rules(trial, divergence)

    monkeypatch.setattr(search, "find_size_rules", counting)
    model = nn.Sequential(nn.Conv2d(3, 40, 1), Branches(), Branches(), nn.Conv2d(40, 4, 1))
    find_groups(model, torch.zeros(2, 3, 4, 4))
    assert asked and set(asked.values()) == {1}
