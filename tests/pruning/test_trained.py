"""Parts that no gradient reaches: they are not pruned, and what the user cannot know of is said once."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune import Pruner
from lightning_taylor_prune.errors import PruningWarning
from tests.lightning_modules import small_network

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Beside(nn.Module):
    """A trained network beside a part that no gradient reaches."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.trained, self.other = small_network(), other

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.other(x)
        return self.trained(x) - wanted


def unscored(model: nn.Module) -> list[str]:
    """Prune twice; returns what is said of groups without a score."""
    pruner = Pruner(model, X)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            model(X).square().mean().backward()
            pruner.update()
            assert pruner.prune(2)
    return [str(w.message) for w in caught if issubclass(w.category, PruningWarning) and "no score" in str(w.message)]


def test_groups_without_scores_are_named_once() -> None:
    (message,) = unscored(Beside(small_network(width=6)))
    assert "2 groups have no score" in message and message.endswith("other.0, other.3")


TEACHERS = {
    "frozen": small_network(width=6).requires_grad_(False),
    "built alike": small_network(seed=1),
    "its past": copy.deepcopy(small_network()),
}


@pytest.mark.parametrize("kind", TEACHERS)
def test_teachers_are_not_spoken_of(kind: str) -> None:
    assert unscored(Beside(TEACHERS[kind])) == []
