"""A prepared run: the same call several times, after which the network is as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.fakes import resized_fake
from lightning_taylor_prune.tracing.isolation import Snapshot, Write
from lightning_taylor_prune.tracing.recorder import fake_trace, training_flags
from lightning_taylor_prune.tracing.runs import PreparedRun
from tests.oracles import differences, state_of

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = torch.tanh(x)
        return self.linear(self.norm(x))


class Net(nn.Module):
    """Uses a module under two names, and stores what it computes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.same, self.scale, self.fails = inner, inner, 1, False

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.same(self.inner(x)) * self.scale
        if self.fails:
            raise ValueError("fails")
        return self.last


INNER = {"plain": Inner, "scripted": lambda: torch.jit.script(Inner())}
inner = pytest.mark.parametrize("make", INNER.values(), ids=INNER)
X = torch.randn(3, 4)


def record(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    NAMES.append(str(func))
    NUMBERS.extend(args[1:] if func is torch.ops.aten.mul.Tensor else ())
    return func(*args, **kwargs)


NAMES: list[str] = []
NUMBERS: list[Any] = []


@dataclass
class Prepared:
    """A run in which every layer has another width."""

    run_: PreparedRun
    tensors: dict[str, Tensor]

    def run(self, changes: Sequence[Write] = ()) -> tuple[Any, list[Any]]:
        return self.run_.run(self.tensors, record, changes)


def prepared(model: Net, training: bool = True, width: int = 4) -> Prepared:
    NAMES.clear()
    NUMBERS.clear()
    recorded = fake_trace(model, Call("", (torch.randn(3, width),)), dict.fromkeys(training_flags(model), training))
    fakes = {id(t): resized_fake(recorded.mode, t, (width,) * t.dim()) for t in recorded.tensors.values()}
    tensors = {name: fakes[id(tensor)] for name, tensor in recorded.tensors.items()}
    return Prepared(PreparedRun(model, recorded, Snapshot(model)), tensors)


@inner
def test_tensors_are_replaced_under_all_names_of_a_module(make: Any) -> None:
    result, _ = prepared(Net(make()).eval(), width=6).run()
    assert tuple(result.shape) == (3, 6)


@inner
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_mode_is_the_one_of_the_trace(make: Any, training: bool) -> None:
    model = Net(make()).train(not training)
    prepared(model, training).run()
    assert NAMES.count("aten.tanh.default") == (2 if training else 0)


@inner
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_nothing_is_left_changed(make: Any, fails: bool) -> None:
    model = Net(make()).eval()
    model.fails = fails
    before, modes = state_of(model), [m.training for m in model.modules()]
    run = prepared(model, training=True, width=6)
    for _ in range(2):
        try:
            run.run()
        except ValueError:
            assert fails
    assert (differences(before, state_of(model)), [m.training for m in model.modules()]) == ([], modes)
    assert model.inner(X).shape == (3, 4)


def test_a_change_counts_in_its_run_only() -> None:
    model = Net(Inner())
    run = prepared(model)
    for changes in ([], [Write.of_attribute(model, "scale", 5)], []):
        run.run(changes)
    assert NUMBERS == [1, 5, 1]


def test_every_run_draws_the_same_and_returns_what_was_stored() -> None:
    run = prepared(Net(Inner()))
    stored = [run.run()[1] for _ in range(2)]
    assert [[tuple(e.value.shape) for e in entries if isinstance(e.value, Tensor)] for entries in stored] == [
        [(3, 4)],
        [(3, 4)],
    ]


def test_backward_hooks_add_no_operator_and_are_kept() -> None:
    model = Net(Inner())
    prepared(model).run()
    without = [*NAMES]
    model.inner.register_full_backward_hook(lambda *_: None)
    hooks = dict(model.inner._backward_hooks)
    prepared(model).run()
    assert (without, hooks) == (NAMES, dict(model.inner._backward_hooks))
