"""What ``recipes/benchmarks/coverage.py`` measures of one network, stage by stage."""

from __future__ import annotations

import importlib.metadata
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lightning_taylor_prune import find_groups, measure_cost, prune_
from lightning_taylor_prune.errors import TraceError
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.tracing.call import Call
from recipes.benchmarks.coverage_checks import (
    calls_of_parts,
    evaluate,
    evaluate_parts,
    export_error,
    half_of,
    mask_readers_,
    prepared,
    relative_difference,
    require_finite,
    shapes_of,
    training_step,
)
from recipes.benchmarks.coverage_facts import facts
from recipes.benchmarks.coverage_messages import describe, shorten
from recipes.benchmarks.coverage_models import Built, Entry

TOLERANCE = 1e-5
"""Largest difference allowed between pruned and masked output, relative to the largest output."""

PACKAGES = ("lightning-taylor-prune", "torch", "torchvision", "timm", "transformers")

Record = dict[str, Any]
Save = Callable[[Record], None]


def measure(entry: Entry, save: Save) -> Record:
    """Look at one network; ``save`` gets the record before every stage, so that a killed process has written one.

    The record's ``status`` is ``ok``, ``refused`` (an error of this package that says why, before anything was cut)
    or ``broken``; ``stage`` is the last one that was begun.
    """
    record: Record = {"name": entry.name, "expected_refusal": entry.refusal, "status": "running"}
    record.update(seconds={}, cpu_seconds={})
    record["versions"] = versions()
    run = _Run(entry, record, save)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run.all_stages()
            record["status"] = "ok"
        except Exception as error:  # whatever happens to one network is a finding, and the others continue
            refused = isinstance(error, TraceError) and record["stage"] == "find_groups"
            record["status"] = "refused" if refused else "broken"
            record.update(describe(error))
    said = [shorten(str(w.message)) for w in caught if "Pruning" in w.category.__name__]
    record["warnings"] = dict(Counter(said).most_common())
    save(record)
    return record


def versions() -> dict[str, str]:
    """Return the versions of all libraries that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class _Run:
    """The stages; each adds its findings to the record."""

    def __init__(self, entry: Entry, record: Record, save: Save) -> None:
        self._entry, self.record, self._save = entry, record, save

    def _stage(self, name: str, work: Callable[[], Any]) -> Any:
        self.record["stage"] = name
        self._save(self.record)
        start, busy = time.perf_counter(), time.process_time()
        result = work()
        self.record["seconds"][name] = round(time.perf_counter() - start, 3)
        self.record["cpu_seconds"][name] = round(time.process_time() - busy, 3)
        return result

    def all_stages(self) -> None:
        built = self._stage("build", lambda: prepared(self._entry.build()))
        model, args, kwargs = built.model, built.args, dict(built.kwargs)
        self.record["member"] = built.member
        self.record["dtype"] = str(next((p.dtype for p in model.parameters()), None))
        groups = self._stage("find_groups", lambda: find_groups(model, args, kwargs))
        self.record.update(self._stage("describe_groups", lambda: facts(groups)))
        self._note_cost("before", built)
        original = self._stage("forward_original", lambda: evaluate(built))
        parts = self._stage("watch_parts", lambda: calls_of_parts(built, groups))
        self.record["parts"] = sorted({part.module for part in parts})
        groups = self._cut_exact(built, groups, original, parts)
        self._cut_rest(built, groups, original)
        self._note_cost("after", built)
        self.record["loss"] = self._stage("train", lambda: training_step(built))
        self._stage("forward_trained", lambda: require_finite(evaluate(built)))
        self._stage("export", lambda: self._export(built))

    def _note_cost(self, when: str, built: Built) -> None:
        cost = self._stage(f"cost_{when}", lambda: measure_cost(built.model, built.args, built.kwargs))
        self.record[f"params_{when}"], self.record[f"macs_{when}"] = cost.params, cost.macs

    def _cut_exact(
        self, built: Built, groups: ChannelGroups, original: list[Tensor], parts: Sequence[Call]
    ) -> ChannelGroups:
        """Cut the groups whose removal is the same as zeroing; compare with the network that is zeroed there."""
        plan = half_of(groups, lambda g: g.exact)
        self.record["exact_units_cut"] = len(plan)
        if not plan:
            return groups
        if any(part.module for part in parts):
            original = evaluate_parts(built, parts)
        self._stage("mask", lambda: mask_readers_(built.model, plan))
        masked = self._stage("forward_masked", lambda: evaluate_parts(built, parts))
        groups = self._stage("cut", lambda: prune_(built.model, plan))
        pruned = self._stage("forward_pruned", lambda: evaluate_parts(built, parts))
        alike = shapes_of(masked) == shapes_of(original)  # another number of detections is an effect, too
        self.record["masking_effect"] = relative_difference(masked, original) if alike else 1.0
        self.record["masked_error"] = error = relative_difference(pruned, masked)
        if not error <= TOLERANCE:
            raise AssertionError(f"The pruned network differs from the masked one by {error:.2g} of its output.")
        return groups

    def _cut_rest(self, built: Built, groups: ChannelGroups, original: list[Tensor]) -> None:
        plan = half_of(groups, lambda g: not g.exact)
        self.record["inexact_units_cut"] = len(plan)
        if plan:
            groups = self._stage("cut_rest", lambda: prune_(built.model, plan))
            output = self._stage("forward_rest", lambda: evaluate(built))
            require_finite(output)
            if not built.free_shapes and [t.shape for t in output] != [t.shape for t in original]:
                raise AssertionError(f"Shapes went from {shapes_of(original)} to {shapes_of(output)}.")
        counted = sum(p.numel() for p in built.model.parameters())
        if counted != groups.params:
            raise AssertionError(f"{groups.params} parameters were predicted, but {counted} are there.")

    def _export(self, built: Built) -> None:
        """Export the result; where that fails, find out whether the network could be exported before."""
        try:
            self.record["export_error"] = export_error(built)
            self.record["export"] = "ok"
        except Exception as error:  # torch.export cannot do every network; whose fault it is is the finding
            self.record["export_message"] = describe(error)["error"][:500]
            try:
                export_error(prepared(self._entry.build()))
                self.record["export"] = "broken"
            except Exception:  # nor before pruning, then
                self.record["export"] = "not before pruning either"
