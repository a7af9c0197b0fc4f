"""Run the network's own code at the shapes a plan predicts, without data, and compare operator by operator."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from lightning_taylor_prune.groups.changes import CodeChanges
from lightning_taylor_prune.groups.divergence import Divergence
from lightning_taylor_prune.groups.late_values import Attribute, LateValues
from lightning_taylor_prune.groups.recorded_calls import KnownResults
from lightning_taylor_prune.groups.shapes import KeepMask
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.groups.verified_run import Look, VerifiedRun, see_nothing
from lightning_taylor_prune.modules.rewrite import rewritten
from lightning_taylor_prune.modules.updates import AttributeUpdate, attribute_updates
from lightning_taylor_prune.plan import Cut
from lightning_taylor_prune.tracing.fakes import fake_tensor_log_off, resized_fake
from lightning_taylor_prune.tracing.isolation import Snapshot, Write
from lightning_taylor_prune.tracing.recorder import Trace
from lightning_taylor_prune.tracing.runs import PreparedRun
from lightning_taylor_prune.tracing.tensors import named_tensors
from lightning_taylor_prune.tracing.values import (
    KnownValues,
    value_of,
)


class DryRun:
    """Runs a network's code at the shapes that a cut leads to, without data, and compares operator by operator.

    Results of operators are stored and used again: few shapes change from one cut to the next.

    Code may take another path now than when it was traced (one for each task in turn, say): that is no disagreement as
    long as the other path is that of another trace, and as predicted.

    Args:
        traces: The traces of the network, as they were recorded.
        shown: How many of these, the first ones, show what the code does now; the others show former paths.
        unset: Attributes that held nothing when the network was traced.
    """

    def __init__(
        self, traces: Sequence[Trace], shown: int | None = None, unset: Collection[Attribute] = frozenset()
    ) -> None:
        self.traces, self._unset = traces, unset
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
        prepared = self.prepare(root, structure, kept, cuts)
        found = prepared.check(changes)
        if found is not None and (late := LateValues(root, self._unset)):
            again = prepared.check(changes, late=late)
            return again if again is None and late.came_again() else found
        return found

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

    def check(self, changes: CodeChanges, afresh: bool = False, late: LateValues | None = None) -> Divergence | None:
        """Return the first disagreement if the code changes in this way, or ``None``.

        Args:
            changes: What changes in modules, in addition to their tensors.
            afresh: Run the code even where the outcome of these changes is known already.
            late: What the code has set since the network was traced: it is to set that again.
        """
        with fake_tensor_log_off(), rewritten(self._root, changes.rewritten) as done:
            if done:  # the snapshot lacks what this has stored in the modules
                again = self._dry_run.prepare(self._root, self._structure, self._kept, self._cuts)
                return again.check(replace(changes, rewritten=()), late=late)
            updates = changes.updates(self._root, self._structure, self._counts)
            key = frozenset((id(update.module), update.name, repr(update.value)) for update in updates)
            if late is not None:
                return self._run_all([*_writes(updates), *late.writes], late.look)
            if afresh or key not in self._known:
                self._known[key] = self._run_all(_writes(updates))
            return self._known[key]

    def _run_all(self, changes: Sequence[Write], look: Look = see_nothing) -> Divergence | None:
        for number in range(self._dry_run.shown):
            divergence = self._run(number, changes, look)
            if divergence is not None and not any(
                self._run(other, changes, look) is None for other in self._dry_run.alternatives_of(number)
            ):
                return divergence
        return None

    def _run(self, number: int, changes: Sequence[Write], look: Look) -> Divergence | None:
        found = self._run_once(number, changes, look)
        if not self._dry_run.traces[number].known.give_up():
            return found
        self._dry_run.forget_results()
        return self._run_once(number, changes, look)

    def _run_once(self, number: int, changes: Sequence[Write], look: Look) -> Divergence | None:
        dry_run, trace = self._dry_run, self._dry_run.traces[number]
        tensors = dry_run.cut_tensors(number, self._structure, self._counts)
        values = KnownValues(
            trace.mode, tensors, value_of(self._real, tensors), refused=trace.refused, by_shape=trace.known
        )
        check = VerifiedRun(self._structure, number, self._counts, dry_run.results[number], values, look)
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
