"""The search does nothing twice whose outcome is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune.groups import search
from lightning_taylor_prune.groups.paths import Paths
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.paths import trace_paths


class Branches(nn.Module):
    """Sends a fixed number of channels through a convolution of their own, as InceptionNeXt does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.sizes = nn.Conv2d(3, 3, 1, groups=3), (7, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split(self.sizes, 1)
        return torch.cat([a, self.conv(b)], 1)


def test_no_integers_are_looked_for_again_where_none_explained_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(search, "find_size_rules", lambda trial, divergence: asked.append(divergence) or ())
    model = nn.Sequential(nn.Conv2d(3, 10, 1), Branches(), nn.Conv2d(10, 4, 1)).eval()
    call = Call("", (torch.zeros(1, 3, 4, 4),))
    searching = search.Search(model, Paths([call], trace_paths(model, call)), False, (), ())
    outcomes = [searching.settle(searching._structure())[1] for _ in range(2)]
    assert outcomes[0] is not None and outcomes[1] is not None and len(asked) == 1
