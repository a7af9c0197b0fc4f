"""Calls whose code draws which way it goes."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.paths import answered_paths, trace_paths

Draw = Callable[[], bool]


class Choosing(nn.Module):
    """Runs one of two layers, by chance."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.a, self.b, self.draw = nn.Linear(3, 4), nn.Linear(3, 4), draw

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if self.draw() else self.b(x)


PYTHON: dict[str, Draw] = {
    "random": lambda: random.random() < 0.5,
    "numpy": lambda: bool(np.random.rand() < 0.5),
    "choice": lambda: random.choice([True, False]),
}

TORCH: dict[str, Draw] = {
    "rand": lambda: bool(torch.rand(()) < 0.5),
    "bernoulli": lambda: torch.bernoulli(torch.tensor(0.5)).item() == 1,
    "randperm": lambda: torch.randperm(2).tolist()[0] == 0,
}

X = torch.randn(2, 3)


def layers_run(traces: list[object]) -> set[str]:
    return {node.meta["module"] for t in traces for node in t.ops if node.meta["module"]}  # type: ignore[attr-defined]


@pytest.mark.parametrize("draw", PYTHON.values(), ids=PYTHON.keys())
def test_both_ways_are_traced(draw: Draw) -> None:
    assert layers_run([*trace_paths(Choosing(draw), Call("", (X,)))]) == {"a", "b"}


@pytest.mark.parametrize("draw", TORCH.values(), ids=TORCH.keys())
def test_both_ways_are_traced_where_torch_draws(draw: Draw) -> None:
    model = Choosing(draw)
    traces = [t for call in answered_paths(model, [Call("", (X,))]) for t in trace_paths(model, call)]
    assert layers_run([*traces]) == {"a", "b"}


@pytest.mark.parametrize("draw", [lambda: True], ids=["never"])
def test_code_that_draws_nothing_is_traced_once(draw: Draw) -> None:
    assert len(trace_paths(Choosing(draw), Call("", (X,)))) == 1


@pytest.mark.parametrize("draw", PYTHON.values(), ids=PYTHON.keys())
def test_random_states_are_unchanged(draw: Draw) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    trace_paths(Choosing(draw), Call("", (X,)))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]
