"""Run the network's own code at the shapes a plan predicts, without data, and compare operator by operator."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_taylor_prune.groups.changes import CodeChanges
from lightning_taylor_prune.groups.constants import changed_number
from lightning_taylor_prune.groups.divergence import Divergence, frames_of
from lightning_taylor_prune.groups.recorded_calls import KnownResults, as_results
from lightning_taylor_prune.groups.shapes import KeepMask
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.labels.places import Site
from lightning_taylor_prune.labels.rules.registry import describe_operator, operator_name
from lightning_taylor_prune.modules.rewrite import rewritten
from lightning_taylor_prune.modules.updates import AttributeUpdate, attribute_updates
from lightning_taylor_prune.plan import Cut
from lightning_taylor_prune.tracing.arrays import numpy_recorded
from lightning_taylor_prune.tracing.fakes import fake_tensor_log_off, resized_fake
from lightning_taylor_prune.tracing.isolation import Snapshot, Write
from lightning_taylor_prune.tracing.leaks import clear_frames
from lightning_taylor_prune.tracing.recorder import Trace
from lightning_taylor_prune.tracing.runs import PreparedRun, user_line
from lightning_taylor_prune.tracing.tensors import named_tensors
from lightning_taylor_prune.tracing.values import (
    NEEDS_VALUES,
    KnownValues,
    as_answer,
    made_up,
    value_of,
)


class _DivergedError(Exception):
    pass


class DryRun:
    """Runs a network's code at the shapes that a cut leads to, without data, and compares operator by operator.

    Results of operators are stored and used again: few shapes change from one cut to the next.

    Code may take another path now than when it was traced (one for each task in turn, say): that is no disagreement as
    long as the other path is that of another trace, and as predicted.

    Args:
        traces: The traces of the network, as they were recorded.
        shown: How many of these, the first ones, show what the code does now; the others show former paths.
    """

    def __init__(self, traces: Sequence[Trace], shown: int | None = None) -> None:
        self.traces = traces
        self.shown = len(traces) if shown is None else shown
        self.results = [KnownResults() for _ in traces]
        self._tensors: list[dict[str, Tensor]] = [{} for _ in traces]

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
        return self.prepare(root, structure, kept, cuts).check(changes)

    def prepare(
        self,
        root: nn.Module,
        structure: Structure,
        kept: KeepMask,
        cuts: Sequence[Cut],
        snapshot: Snapshot | None = None,
    ) -> PreparedDryRun:
        """Prepare dry runs of one cut with several changes of the code.

        The arguments are those of :meth:`check`, and a snapshot of the network as it is now, if there is one.
        """
        return PreparedDryRun(self, structure, kept, cuts, snapshot or Snapshot(root))

    def cut_tensors(self, number: int, structure: Structure, counts: Sequence[int]) -> dict[str, Tensor]:
        """Return the fake tensors of a trace at their predicted shapes; tied tensors are the same object."""
        trace, known = self.traces[number], self._tensors[number]
        fakes: dict[int, Tensor] = {}
        for name, rule in structure.tensors.items():
            old, shape = trace.tensors[name], rule.apply(counts)
            last = known.get(name, old)
            if tuple(last.shape) != shape:
                last = known[name] = resized_fake(trace.mode, old, shape)
            fakes[id(old)] = last
        return {name: fakes[id(tensor)] for name, tensor in trace.tensors.items()}

    def alternatives_of(self, number: int) -> list[int]:
        """Return the numbers of the other paths that the code of a trace may take."""
        situation = self.traces[number].situation
        return [i for i, trace in enumerate(self.traces) if i != number and trace.situation == situation]

    def forget_results(self) -> None:
        """Let go of all stored results: another dry run has the same traces from now on."""
        self.results = [KnownResults() for _ in self.traces]
        self._tensors = [{} for _ in self.traces]

    def forget_leaks(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Make the network's code forget the fake tensors of the last run of a trace, made with these parameters."""
        self.traces[number].forget_leaks([tensors, self._tensors[number], self.results[number].calls])


class PreparedDryRun:
    """Dry runs of one cut that differ in the changes of the code only; what they share is done once.

    As long as this is used, nothing else may change the network. :meth:`DryRun.check` describes the arguments.
    """

    def __init__(
        self, dry_run: DryRun, structure: Structure, kept: KeepMask, cuts: Sequence[Cut], snapshot: Snapshot
    ) -> None:
        self._dry_run, self._root, self._structure = dry_run, snapshot.root, structure
        self._kept, self._cuts = kept, cuts
        self._counts = structure.counts(kept)
        self._snapshot = snapshot
        self._real = dict(named_tensors(self._root))
        self._writes = _writes(attribute_updates(self._root, cuts))
        self._runs: dict[int, PreparedRun] = {}
        self._known: dict[Hashable, Divergence | None] = {}

    def check(self, changes: CodeChanges, afresh: bool = False) -> Divergence | None:
        """Return the first disagreement if the code changes in this way, or ``None``.

        Args:
            changes: What changes in modules, in addition to their tensors.
            afresh: Run the code even where the outcome of these changes is known already.
        """
        with fake_tensor_log_off(), rewritten(self._root, changes.rewritten) as done:
            if done:  # the snapshot lacks what this has stored in the modules
                again = self._dry_run.prepare(self._root, self._structure, self._kept, self._cuts)
                return again.check(replace(changes, rewritten=()))
            updates = changes.updates(self._root, self._structure, self._counts)
            key = frozenset((id(update.module), update.name, repr(update.value)) for update in updates)
            if afresh or key not in self._known:
                self._known[key] = self._run_all(_writes(updates))
            return self._known[key]

    def _run_all(self, changes: Sequence[Write]) -> Divergence | None:
        for number in range(self._dry_run.shown):
            divergence = self._run(number, changes)
            if divergence is not None and not any(
                self._run(other, changes) is None for other in self._dry_run.alternatives_of(number)
            ):
                return divergence
        return None

    def _run(self, number: int, changes: Sequence[Write]) -> Divergence | None:
        found = self._run_once(number, changes)
        if not self._dry_run.traces[number].known.give_up():
            return found
        self._dry_run.forget_results()
        return self._run_once(number, changes)

    def _run_once(self, number: int, changes: Sequence[Write]) -> Divergence | None:
        dry_run, trace = self._dry_run, self._dry_run.traces[number]
        tensors = dry_run.cut_tensors(number, self._structure, self._counts)
        values = KnownValues(
            trace.mode, tensors, value_of(self._real, tensors), refused=trace.refused, by_shape=trace.known
        )
        check = _Check(self._structure, number, self._counts, dry_run.results[number], values)
        found = check.run(self._prepared(number), tensors, changes)
        dry_run.forget_leaks(number, tensors)
        return found

    def _prepared(self, number: int) -> PreparedRun:
        if number not in self._runs:
            trace = self._dry_run.traces[number]
            self._runs[number] = PreparedRun(self._root, trace, self._snapshot, self._writes)
        return self._runs[number]


def _writes(updates: Sequence[AttributeUpdate]) -> list[Write]:
    return [Write.of_attribute(update.module, update.name, update.value) for update in updates]


class _Check:
    """One verified forward pass."""

    def __init__(
        self, structure: Structure, number: int, counts: Sequence[int], results: KnownResults, values: KnownValues
    ) -> None:
        self._ops = structure.propagation.traces[number].ops
        self._results, self._values = results, values
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
