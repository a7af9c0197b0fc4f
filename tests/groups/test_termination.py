"""The analysis comes to an end, whatever the network's code does from one run to the next."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lightning_taylor_prune
from lightning_taylor_prune import ChannelGroups, TaylorPruningCallback, find_groups
from tests.lightning_modules import Classifier, loader, trainer

PACKAGE = Path(lightning_taylor_prune.__file__).parent


class Alternating(nn.Module):
    """Runs another operator at every call in evaluation mode, on nothing that could be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Iterator[int] = itertools.count()
        self.a, self.b = nn.Linear(10, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, :10]
        if self.training:
            return self.b(self.a(x).relu())
        return x.sin() if next(self.calls) % 2 else x.cos()


class AlternatingTwice(Alternating):
    """Has more than one group in the mode that can be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 12), nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 10))


class AlternatingLength(Alternating):
    """Runs one operator more at every call."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.b(self.a(x.flatten(1)[:, :10]).relu())
        for _ in range(next(self.calls) + 1):
            x = x.neg()
        return x


UNSTEADY = [Alternating, AlternatingTwice, AlternatingLength]
unsteady = pytest.mark.parametrize("kind", UNSTEADY, ids=lambda kind: kind.__name__)


def analysed(kind: type[nn.Module]) -> ChannelGroups:
    return find_groups(kind().train(), torch.rand(2, 10))


@unsteady
def test_what_no_run_confirms_is_locked(kind) -> None:
    assert analysed(kind).num_units == 0


@unsteady
def test_the_reason_names_what_the_code_does(kind) -> None:
    assert any("the network's code" in entry.reason for entry in analysed(kind).locked if entry.name == "a")


def test_training_goes_on() -> None:
    module = Classifier(Alternating())
    fit = trainer(TaylorPruningCallback(every_n_steps=2), max_epochs=-1, max_steps=5, limit_val_batches=0)
    fit.fit(module, loader())
    assert fit.global_step == 5


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_asks_for_a_next_item_that_may_not_be_there(path: Path) -> None:
    """`StopIteration` out of a hook ends an epoch without a word: `next` needs a default."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    bare = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "next" and len(c.args) < 2]
    assert bare == []
