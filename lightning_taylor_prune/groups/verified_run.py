"""One run of the network's own code, compared operator by operator with what is predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_taylor_prune.groups.constants import changed_number
from lightning_taylor_prune.groups.divergence import Divergence, frames_of
from lightning_taylor_prune.groups.recorded_calls import KnownResults, as_results
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.labels.places import Site
from lightning_taylor_prune.labels.rules.registry import describe_operator, operator_name
from lightning_taylor_prune.tracing.arrays import numpy_recorded
from lightning_taylor_prune.tracing.isolation import Write
from lightning_taylor_prune.tracing.leaks import clear_frames
from lightning_taylor_prune.tracing.runs import PreparedRun, user_line
from lightning_taylor_prune.tracing.values import NEEDS_VALUES, KnownValues, as_answer, made_up

Look = Callable[[], None]


class _DivergedError(Exception):
    pass


def see_nothing() -> None:
    """Look at nothing while the code runs."""


class VerifiedRun:
    """One verified forward pass."""

    def __init__(
        self,
        structure: Structure,
        number: int,
        counts: Sequence[int],
        results: KnownResults,
        values: KnownValues,
        look: Look,
    ) -> None:
        self._ops = structure.propagation.traces[number].ops
        self._results, self._values, self._look = results, values, look
        self._number = number
        self._counts = counts
        self._rules = structure.results[number]
        self._expectations = structure.expectations[number]
        self._index = 0
        self._found: str | None = None
        self._arguments: tuple[Any, ...] = ()

    def run(self, prepared: PreparedRun, tensors: Mapping[str, Tensor], changes: Sequence[Write]) -> Divergence | None:
        """Run the network's code and return the first disagreement."""
        try:
            return self._run(prepared, tensors, changes)
        finally:
            self._arguments = ()
            self._values.forget()

    def _run(self, prepared: PreparedRun, tensors: Mapping[str, Tensor], changes: Sequence[Write]) -> Divergence | None:
        try:
            with numpy_recorded(self._on_call):
                prepared.run(tensors, self._on_call, changes)
        except _DivergedError as error:
            return self._divergence(self._found or str(error), error)
        except Exception as error:  # the network's code may raise anything at these shapes, and that is the result
            operator = operator_name(self._ops[self._index].target) if self._index < len(self._ops) else "at its end"
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            message = f"the network's code fails once they are removed: {text} ({operator}, {user_line(error)})"
            return self._divergence(self._found or message, error)
        if self._found is not None:  # the network's code has caught the exception
            return self._divergence(self._found)
        while self._passes_unchanged(self._index):
            self._index += 1
        if self._index < len(self._ops):
            return self._divergence("the network's code takes another path once they are removed")
        return None

    def _divergence(self, message: str, error: BaseException | None = None) -> Divergence:
        modules, lines = frames_of(error)
        clear_frames(error)
        numbers = frozenset(n for n in tree_leaves(self._arguments) if type(n) is int)
        return Divergence(Site(self._number, min(self._index, len(self._ops) - 1)), message, modules, lines, numbers)

    def _on_call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._arguments = args, kwargs
        self._look()
        if not self._passes_unchanged(self._index) and func in _UNCHANGED:
            return func(*args, **kwargs)
        while self._passes_unchanged(self._index) and func not in _UNCHANGED:
            self._index += 1
        index = self._index
        expected: Any = self._ops[index].target if index < len(self._ops) else None
        if expected is not func:
            before = describe_operator(self._ops[index]) if expected is not None else "the end of its run"
            self._fail(f"the network's code calls {operator_name(func)} once they are removed, in place of ({before})")
        if (message := changed_number(self._ops[index], args, kwargs)) is not None:
            self._fail(message)
        for expected in self._expectations.get(index, ()):
            actual, predicted = expected.expectation.argument(*args, **kwargs), expected.value(self._counts)
            if actual != predicted:
                self._fail(self._describe(expected.expectation.meaning, predicted, actual))
        result = self._results.of(index, func, args, kwargs, self._answer)
        self._values.note(func, args, kwargs, result)
        read = bool(self._ops[index].users)  # of what nothing reads, the size does not matter
        for rule, value in zip(self._rules[index], as_results(result), strict=True):
            if read and isinstance(value, Tensor) and tuple(value.shape) != (shape := rule.apply(self._counts)):
                self._fail(self._describe("shape", shape, tuple(value.shape)))
        self._index += 1
        return result

    def _answer(self, index: int, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self._values.call(func, args, kwargs)
        except NEEDS_VALUES:  # of a tensor that is cut, or of the input: what it was when it was traced
            before = self._ops[index].meta["val"]
            shapes = [rule.apply(self._counts) for rule in self._rules[index]]
            now = [as_answer(v, shape) for v, shape in zip(as_results(before), shapes, strict=True)]
            return made_up((args, kwargs), type(before)(now) if isinstance(before, (tuple, list)) else now[0])

    def _passes_unchanged(self, index: int) -> bool:
        """Whether an operator only changes the memory layout, and so may be absent when an axis has size 1."""
        return index < len(self._ops) and self._ops[index].target in _UNCHANGED

    def _fail(self, message: str) -> NoReturn:
        self._found = self._found or message
        raise _DivergedError(message)

    def _describe(self, what: str, predicted: Any, actual: Any) -> str:
        return (
            f"forward() hard-codes a size: expected {what} {predicted} after pruning, got {actual} "
            f"({describe_operator(self._ops[self._index])})"
        )


_UNCHANGED = frozenset({torch.ops.aten.contiguous.default})
