"""Results of operators on fake tensors, used again where an operator is called with the same operands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_taylor_prune.tracing.tensors import memory_of

CallAt = Callable[[int, Any, tuple[Any, ...], dict[str, Any]], Any]


class KnownResults:
    """The last result of every operator of a trace.

    Attributes:
        calls: The last calls by position.
    """

    def __init__(self) -> None:
        self.calls: dict[int, RecordedCall] = {}

    def of(self, index: int, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], call: CallAt) -> Any:
        """Run an operator; called with the same operands as last time, return the same tensors again.

        Args:
            index: Its position in the trace.
            func: The operator.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            call: Runs it; gets all of these.
        """
        grad = torch.is_grad_enabled()
        last = self.calls.get(index)
        if last is not None and last.fits(func, grad, args, kwargs):
            return last.result
        result = _SHORT_CUTS[func](*args, **kwargs) if func in _SHORT_CUTS else call(index, func, args, kwargs)
        self.calls[index] = RecordedCall(func, grad, args, kwargs, result, layouts_of(result))
        return result


@dataclass(frozen=True)
class RecordedCall:
    """One call of an operator on fake tensors, and its result."""

    func: Any
    grad: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    layouts: list[Any]

    def fits(self, func: Any, grad: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call is the same one, and no operator has changed the shapes of its results in place since."""
        called_alike = self.func is func and self.grad == grad and _same(self.args, args) and _same(self.kwargs, kwargs)
        return called_alike and layouts_of(self.result) == self.layouts


def layouts_of(result: Any) -> list[Any]:
    """Return how the results of an operator lie in memory."""
    return [memory_of(v) if isinstance(v, Tensor) else v for v in as_results(result)]


def _same(a: Any, b: Any) -> bool:
    """Whether arguments are equal; tensors are if they are the same memory with the same layout."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.requires_grad == b.requires_grad and memory_of(a) == memory_of(b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    return bool(a == b)


def _batch_norm(x: Tensor, *vectors: Any, **kwargs: Any) -> Tensor:
    """Batch normalisation on fake tensors, without its decomposition, which would take most of the time.

    Raises:
        RuntimeError: A parameter or statistic does not have one number per channel.
    """
    for vector in (*vectors[:4], *kwargs.values()):
        if isinstance(vector, Tensor) and tuple(vector.shape) != (x.shape[1],):
            raise RuntimeError(f"expected {x.shape[1]} numbers, one per channel, but got shape {list(vector.shape)}")
    return torch.empty_like(x)


_SHORT_CUTS: dict[Any, Callable[..., Tensor]] = {torch.ops.aten.batch_norm.default: _batch_norm}


def as_results(result: Any) -> Iterator[Any]:
    """Yield the results of an operator, one or several."""
    yield from result if isinstance(result, (tuple, list)) else (result,)
