"""Run the network's own code at the shapes a plan predicts, without data, and compare operator by operator."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from lightning_taylor_prune.groups.changes import CodeChanges
from lightning_taylor_prune.groups.constants import same_numbers, shown
from lightning_taylor_prune.groups.recorded_calls import RecordedCall, as_results, layouts_of
from lightning_taylor_prune.groups.shapes import KeepMask
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.labels.places import Site
from lightning_taylor_prune.labels.rules.registry import describe_operator, operator_name
from lightning_taylor_prune.modules.rewrite import rewritten
from lightning_taylor_prune.modules.updates import attribute_updates, patched
from lightning_taylor_prune.plan import Cut
from lightning_taylor_prune.tracing.fakes import fake_tensor_log_off, resized_fake
from lightning_taylor_prune.tracing.leaks import clear_frames
from lightning_taylor_prune.tracing.recorder import Trace, run, user_line
from lightning_taylor_prune.tracing.values import NEEDS_VALUES, KnownValues, value_of


@dataclass(frozen=True)
class Divergence:
    """Where the network's code did not do what was predicted.

    Attributes:
        site: Number of the trace, and position of the operator in it.
        message: What was expected and what the code did, with the source line.
        modules: The modules whose code was running, the innermost first.
        lines: Files and lines that were being executed, the innermost first.
        numbers: Integer arguments that the operator was called with.
    """

    site: Site
    message: str
    modules: tuple[nn.Module, ...] = ()
    lines: tuple[str, ...] = ()
    numbers: frozenset[int] = frozenset()


class _DivergedError(Exception):
    pass


class DryRun:
    """Runs a network's code at the shapes that a cut leads to, without data, and compares operator by operator.

    Results of operators are stored and used again: few shapes change from one cut to the next.

    Args:
        traces: The traces of the network, as they were recorded.
    """

    def __init__(self, traces: Sequence[Trace]) -> None:
        self._traces = traces
        self._tensors: list[dict[str, Tensor]] = [{} for _ in traces]
        self._results: list[dict[int, RecordedCall]] = [{} for _ in traces]

    def check(
        self, root: nn.Module, structure: Structure, changes: CodeChanges, kept: KeepMask, cuts: Sequence[Cut]
    ) -> Divergence | None:
        """Check that a network, cut to what is kept, runs as predicted; nothing is changed.

        Args:
            root: The network as it is now.
            structure: Its structure, made from the traces.
            changes: What changes in its modules, in addition to their tensors.
            kept: Which labels are kept after the cut.
            cuts: The cuts that lead there from the network as it is now.

        Returns:
            The first disagreement, or ``None``.
        """
        counts = structure.counts(kept)
        with (
            fake_tensor_log_off(),
            rewritten(root, changes.rewritten),
            patched([*attribute_updates(root, cuts), *changes.updates(root, structure, counts)]),
        ):
            for number, trace in enumerate(self._traces):
                check = _Check(structure, number, counts, self._results[number])
                tensors = self._cut_tensors(number, structure, counts)
                found = check.run(root, trace, tensors)
                trace.forget_leaks([tensors, self._tensors[number], self._results[number]])
                if found is not None:
                    return found
        return None

    def _cut_tensors(self, number: int, structure: Structure, counts: Sequence[int]) -> dict[str, Tensor]:
        """Return the fake tensors of a trace at their predicted shapes; tied tensors are the same object."""
        trace, known = self._traces[number], self._tensors[number]
        fakes: dict[int, Tensor] = {}
        for name, rule in structure.tensors.items():
            old, shape = trace.tensors[name], rule.apply(counts)
            last = known.get(name, old)
            if tuple(last.shape) != shape:
                last = known[name] = resized_fake(trace.mode, old, shape)
            fakes[id(old)] = last
        return {name: fakes[id(tensor)] for name, tensor in trace.tensors.items()}


class _Check:
    """One verified forward pass."""

    def __init__(
        self, structure: Structure, number: int, counts: Sequence[int], results: dict[int, RecordedCall]
    ) -> None:
        self._ops = structure.propagation.traces[number].ops
        self._results = results
        self._number = number
        self._counts = counts
        self._rules = structure.results[number]
        self._expectations = structure.expectations[number]
        self._index = 0
        self._found: str | None = None
        self._arguments: tuple[Any, ...] = ()
        self._values: KnownValues

    def run(self, root: nn.Module, trace: Trace, tensors: Mapping[str, Tensor]) -> Divergence | None:
        """Run the network's code and return the first disagreement."""
        self._values = KnownValues(trace.mode, tensors, value_of(root, tensors))
        try:
            return self._run(root, trace, tensors)
        finally:
            self._arguments = ()
            self._values.forget()

    def _run(self, root: nn.Module, trace: Trace, tensors: Mapping[str, Tensor]) -> Divergence | None:
        try:
            run(root, trace, tensors, self._on_call)
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
        modules, lines = _frames(error)
        clear_frames(error)
        numbers = frozenset(n for n in tree_leaves(self._arguments) if type(n) is int)
        return Divergence(Site(self._number, min(self._index, len(self._ops) - 1)), message, modules, lines, numbers)

    def _on_call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._arguments = args, kwargs
        if not self._passes_unchanged(self._index) and func in _UNCHANGED:
            return func(*args, **kwargs)
        while self._passes_unchanged(self._index) and func not in _UNCHANGED:
            self._index += 1
        index = self._index
        expected: Any = self._ops[index].target if index < len(self._ops) else None
        if expected is not func:
            before = describe_operator(self._ops[index]) if expected is not None else "the end of its run"
            self._fail(f"the network's code calls {operator_name(func)} once they are removed, in place of ({before})")
        self._compare_numbers(self._ops[index], args, kwargs)
        for expected in self._expectations.get(index, ()):
            actual, predicted = expected.expectation.argument(*args, **kwargs), expected.value(self._counts)
            if actual != predicted:
                self._fail(self._describe(expected.expectation.meaning, predicted, actual))
        result = self._result(index, func, args, kwargs)
        for rule, value in zip(self._rules[index], as_results(result), strict=True):
            if isinstance(value, Tensor) and tuple(value.shape) != (shape := rule.apply(self._counts)):
                self._fail(self._describe("shape", shape, tuple(value.shape)))
        self._index += 1
        return result

    def _result(self, index: int, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator; called with the same operands as last time, return the same tensors again."""
        grad = torch.is_grad_enabled()
        last = self._results.get(index)
        if last is not None and last.fits(func, grad, args, kwargs):
            self._values.note(func, args, kwargs, last.result)
            return last.result
        result = self._answer(index, func, args, kwargs)
        self._values.note(func, args, kwargs, result)
        self._results[index] = RecordedCall(func, grad, args, kwargs, result, layouts_of(result))
        return result

    def _answer(self, index: int, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _SHORT_CUTS:
            return _SHORT_CUTS[func](*args, **kwargs)
        try:
            return self._values.call(func, args, kwargs)
        except NEEDS_VALUES:  # of a tensor that is cut: what it was when it was traced
            answer = self._ops[index].meta["val"]
            if isinstance(answer, Tensor):
                raise
            return answer

    def _passes_unchanged(self, index: int) -> bool:
        """Whether an operator only changes the memory layout, and so may be absent when an axis has size 1."""
        return index < len(self._ops) and self._ops[index].target in _UNCHANGED

    def _compare_numbers(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Fail if a number in the arithmetic depends on how many channels there are: then the values would change."""
        for name in _operands(node.target):
            before, now = (_argument(name, *given) for given in ((node.args, node.kwargs), (args, kwargs)))
            if isinstance(before, Node) and "constant" in before.meta and not same_numbers(before.meta["val"], now):
                self._fail(
                    f"the network's code computes with a constant that follows them: {shown(now)} where it was "
                    f"{shown(before.meta['val'])} ({describe_operator(node)})"
                )
            if isinstance(now, (int, float)) and isinstance(before, (int, float)) and now != before:
                self._fail(
                    f"the network's code computes with a size: expected the number {before} after pruning, got {now} "
                    f"({describe_operator(node)})"
                )

    def _fail(self, message: str) -> NoReturn:
        self._found = self._found or message
        raise _DivergedError(message)

    def _describe(self, what: str, predicted: Any, actual: Any) -> str:
        return (
            f"forward() hard-codes a size: expected {what} {predicted} after pruning, got {actual} "
            f"({describe_operator(self._ops[self._index])})"
        )


def _frames(error: BaseException | None) -> tuple[tuple[nn.Module, ...], tuple[str, ...]]:
    """Return the modules whose code an exception passed through, and the lines, the innermost first."""
    modules: dict[int, nn.Module] = {}
    lines = []
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__ if error is not None else None)]):
        holder = frame.f_locals.get("self")
        if isinstance(holder, nn.Module):
            modules.setdefault(id(holder), holder)
        lines.append(f"{frame.f_code.co_filename}:{line}")
    return tuple(modules.values()), tuple(lines)


def _batch_norm(x: Tensor, *vectors: Any, **kwargs: Any) -> Tensor:
    """Batch normalisation on fake tensors, without its decomposition, which would take most of the time.

    Raises:
        RuntimeError: A parameter or statistic does not have one number per channel.
    """
    for vector in (*vectors[:4], *kwargs.values()):
        if isinstance(vector, Tensor) and tuple(vector.shape) != (x.shape[1],):
            raise RuntimeError(f"expected {x.shape[1]} numbers, one per channel, but got shape {list(vector.shape)}")
    return torch.empty_like(x)


_UNCHANGED = frozenset({torch.ops.aten.contiguous.default})

_SHORT_CUTS: dict[Any, Callable[..., Tensor]] = {torch.ops.aten.batch_norm.default: _batch_norm}


@cache
def _operands(func: Any) -> tuple[tuple[int, str], ...]:
    """Return position and name of the arguments that may be numbers in the arithmetic, not sizes or axes."""
    arguments = func._schema.arguments if hasattr(func, "_schema") else ()
    computed = ("Tensor", "number", "float")
    return tuple(
        (i, a.name) for i, a in enumerate(arguments) if str(a.type).removeprefix("Optional[").startswith(computed)
    )


def _argument(place: tuple[int, str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    position, name = place
    return args[position] if position < len(args) else kwargs.get(name)
