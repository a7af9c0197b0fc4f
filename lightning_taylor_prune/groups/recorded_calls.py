"""Calls of operators on fake tensors, remembered so that the same call need not be run again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_taylor_prune.tracing.tensors import memory_of


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


def as_results(result: Any) -> Iterator[Any]:
    """Yield the results of an operator, one or several."""
    yield from result if isinstance(result, (tuple, list)) else (result,)
