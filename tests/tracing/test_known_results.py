"""Results of operators on fake tensors that are made again instead of worked out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_taylor_prune import find_groups
from lightning_taylor_prune.tracing.fakes import FakeMode
from lightning_taylor_prune.tracing.known_results import ResultsByShape

aten = torch.ops.aten

Calls = list[Any]


def fake(*shape: int, grad: bool = True) -> Tensor:
    tensor: Tensor = FakeMode().from_tensor(torch.empty(shape))
    return tensor.requires_grad_().clone() if grad else tensor


def runner(calls: Calls) -> Callable[[Any, Any, Any], Any]:
    def run(func: Any, args: Any, kwargs: Any) -> Any:
        calls.append(func)
        return func(*args, **kwargs)

    return run


def layouts(result: Any, operand: Tensor) -> list[Any]:
    memory = operand.untyped_storage()._cdata
    return [
        (type(t), t.shape, t.stride(), t.dtype, t.requires_grad, t.is_leaf, t.untyped_storage()._cdata == memory)
        for t in tree_leaves(result)
    ]


@pytest.mark.parametrize(
    ("func", "args"),
    [
        pytest.param(aten.mul.Scalar, (2,), id="in new memory"),
        pytest.param(aten.view.default, ([6, 2],), id="view"),
        pytest.param(aten.unbind.int, (1,), id="several views"),
        pytest.param(aten.max.dim, (1,), id="numbers and indices"),
        pytest.param(aten.contiguous.default, (), id="the operand itself"),
        pytest.param(aten.detach.default, (), id="no gradients"),
        pytest.param(aten.transpose.int, (0, 1), id="strides"),
    ],
)
def test_the_second_result_is_like_the_first_but_is_not_worked_out(func: Any, args: tuple[Any, ...]) -> None:
    known, calls, (first, second) = ResultsByShape(), Calls(), (fake(3, 4), fake(3, 4))
    expected = layouts(known.of(func, (first, *args), {}, runner(calls)), first)
    found = known.of(func, (second, *args), {}, runner(calls))
    assert (layouts(found, second), type(found), len(calls)) == (expected, type(func(second, *args)), 1)


@pytest.mark.parametrize(
    ("func", "first", "second"),
    [
        pytest.param(aten.mul.Tensor, (fake(2), fake(2)), (fake(2), fake(2, 1)), id="another shape"),
        pytest.param(aten.sum.dim_IntList, (fake(2, 2), [0]), (fake(2, 2), [1]), id="another axis"),
        pytest.param(aten.mul.Scalar, (fake(2), 1), (fake(2), 1.0), id="another type of number"),
        pytest.param(aten.relu.default, (fake(2),), (fake(2, grad=False),), id="without gradients"),
        pytest.param(aten.relu_.default, (fake(2),), (fake(2),), id="changes its operand"),
        pytest.param(
            aten.view.default, (fake(2, grad=False), [2]), (fake(2, grad=False), [2]), id="may need gradients"
        ),
    ],
)
def test_what_may_differ_is_worked_out(func: Any, first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    known, calls = ResultsByShape(), Calls()
    for args in (first, second):
        known.of(func, args, {}, runner(calls))
    assert len(calls) == 2


def test_results_can_be_written_to() -> None:
    known = ResultsByShape()
    results = [known.of(aten.mul.Scalar, (fake(2), 2), {}, runner([])) for _ in range(2)]
    assert results[1].add_(1).shape == (2,)


class Gradients(nn.Module):
    """Uses the gradient of its first part with respect to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            y = self.second(self.second(self.first(x)).tanh()).tanh()
            (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        result: Tensor = self.last(y) + slope
        return result


def test_code_that_asks_for_gradients_is_analysed_without_known_results() -> None:
    assert [group.name for group in find_groups(Gradients(), torch.zeros(2, 4))] == ["first"]
