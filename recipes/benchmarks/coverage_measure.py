"""What ``recipes/benchmarks/coverage.py`` measures of one network, stage by stage."""

from __future__ import annotations

import importlib.metadata
import itertools
import math
import os
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_taylor_prune import find_groups, measure_cost, prune_, select
from lightning_taylor_prune.errors import TraceError
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.labels.rules.registry import find_rules, operator_name
from lightning_taylor_prune.plan import PruningPlan
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.tensors import find_tensors
from recipes.benchmarks.coverage_models import Built, Entry

RATIO = 0.5
"""Share of every group's units that is removed."""

TOLERANCE = 1e-5
"""Largest difference allowed between pruned and masked output, relative to the largest output."""

FLOAT64_PARAMS = 50_000_000
"""Networks of more parameters are compared in float32."""

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
    record["warnings"] = _counted(shorten(str(w.message)) for w in caught if "Pruning" in w.category.__name__)
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


def describe(error: BaseException) -> Record:
    """Return what an error says and where it comes from, paths cut short."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{shorten(f.filename)}:{f.lineno} {f.name}" for f in frames]
    cause = error.__cause__
    record = {"error": shorten(f"{type(error).__name__}: {error}")[:2000], "where": places[-6:]}
    if cause is not None:
        inner = traceback.extract_tb(cause.__traceback__)
        record["cause_where"] = [f"{shorten(f.filename)}:{f.lineno} {f.name}" for f in inner][-12:]
    return record


def shorten(text: str) -> str:
    """Drop the part of paths that depends on the machine."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
    return re.sub(r"/[^\s:,()`]*?/site-packages/", "", text).replace(here, "")


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
        self._stage("forward_trained", lambda: _require_finite(evaluate(built)))
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
        self.record["masking_effect"] = relative_difference(masked, original)
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
            _require_finite(output)
            if not built.free_shapes and [t.shape for t in output] != [t.shape for t in original]:
                raise AssertionError(f"Shapes went from {_shapes(original)} to {_shapes(output)}.")
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


# --- the network ---------------------------------------------------------------------------------------------------


def prepared(built: Built) -> Built:
    """Fill what starts out constant (normalisations, zeroed branches, layer scales), and choose a precision.

    Otherwise a wrong cut could hide behind zeros and ones. Tensors without a shape or of integers do not change.
    """
    model = built.model.train()
    generator = torch.Generator().manual_seed(0)
    named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if "running_" in n)]
    with torch.no_grad():
        for name, tensor in named:
            if tensor.is_floating_point() and tensor.numel() > 1 and (tensor == tensor.flatten()[0]).all():
                _fill_(name, tensor, generator)
    small = sum(p.numel() for p in model.parameters()) < FLOAT64_PARAMS
    dtype = torch.float64 if small and not built.float32 else torch.float32
    args, kwargs = tree_map_only(
        Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, (built.args, dict(built.kwargs))
    )
    return replace(built, model=model.to(dtype), args=args, kwargs=kwargs)


def _fill_(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Positive values around 1 for scales, small ones of both signs for the rest."""
    noise = torch.rand(tensor.shape, generator=generator)
    if tensor.dim() > 1:
        tensor.copy_((noise - 0.5) * (12 / max(tensor[0].numel(), 1)) ** 0.5)
    elif name.endswith(("bias", "running_mean")):
        tensor.copy_(noise - 0.3)
    else:
        tensor.copy_(noise + 0.5)


def evaluate(built: Built) -> list[Tensor]:
    """Return all tensors that come out in evaluation mode, with a fixed random state."""
    return evaluate_parts(built, [Call("", built.args, built.kwargs)])


def evaluate_parts(built: Built, parts: Sequence[Call]) -> list[Tensor]:
    """Return all tensors that come out of calls in evaluation mode, with a fixed random state."""
    built.model.eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        output = find_tensors([built.model.get_submodule(c.module)(*c.args, **c.kwargs) for c in parts])
    built.model.train()
    return [t.detach().clone() for t in output if t.is_floating_point()]


def calls_of_parts(built: Built, groups: ChannelGroups) -> list[Call]:
    """Return the calls whose outcomes are compared: the network's own, or those of the parts that were traced.

    A network that is traced in parts chooses by values (which boxes, say): what rounds differently may choose others.
    Each part is therefore called with what it got in the network as it was built.
    """
    names = {t.call.module for t in groups.structure.propagation.traces if t.call.is_submodule}
    if not names:
        return [Call("", built.args, built.kwargs)]
    found: dict[str, Call] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.setdefault(name, Call(name, args, kwargs))

        return hook

    modules = [(name, built.model.get_submodule(name)) for name in sorted(names)]
    handles = [module.register_forward_pre_hook(watch(name), with_kwargs=True) for name, module in modules]
    try:
        evaluate(built)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def training_step(built: Built) -> float:
    """Do one step of descent on the mean square of whatever depends on the parameters; returns it.

    Raises:
        AssertionError: A value is not finite, nothing could be trained, or nothing moved.
    """
    model = built.model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=1e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        output = [t for t in find_tensors(model(*built.args, **built.kwargs)) if t.requires_grad]
    loss = torch.stack([t.square().mean() for t in output]).sum()
    torch.autograd.backward(loss)
    gradients = [p.grad for p in trainable if p.grad is not None]
    _require_finite([loss, *gradients])
    before = [p.detach().clone() for p in trainable if p.grad is not None]
    optimizer.step()
    if all(torch.equal(a, b) for a, b in zip(before, (p for p in trainable if p.grad is not None), strict=True)):
        raise AssertionError("A training step moved no parameter.")
    return float(loss)


def export_error(built: Built) -> float:
    """Export the network in evaluation mode; returns by how much the exported one differs."""
    built.model.eval()
    kwargs = dict(built.kwargs)
    program = torch.export.export(built.model, built.args, kwargs, strict=False)
    with torch.no_grad():
        own = find_tensors(built.model(*built.args, **kwargs))
        exported = find_tensors(program.module()(*built.args, **kwargs))
    return relative_difference(exported, own)


def relative_difference(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference over all tensors, each relative to its largest value.

    Raises:
        AssertionError: Shapes differ, or a value is not finite.
    """
    if [t.shape for t in actual] != [t.shape for t in expected]:
        raise AssertionError(f"Expected outputs of shapes {_shapes(expected)}, but got {_shapes(actual)}.")
    _require_finite(actual)
    pairs = [(a, b) for a, b in zip(actual, expected, strict=True) if a.numel() and a.is_floating_point()]
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item() for a, b in pairs) if pairs else 0.0


def _require_finite(tensors: list[Tensor]) -> None:
    if not all(t.isfinite().all() for t in tensors):
        raise AssertionError("A value is not finite.")


def _shapes(tensors: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in tensors]


# --- the cut -------------------------------------------------------------------------------------------------------


def half_of(groups: ChannelGroups, wanted: Callable[[Any], bool]) -> PruningPlan:
    """Choose half of every wanted group's units at random; what is not a number is never chosen."""
    scores = torch.rand(groups.num_units, generator=torch.Generator().manual_seed(0))
    for group in groups:
        if not wanted(group):
            scores[group.first_unit : group.first_unit + group.num_channels] = math.nan
    return select(groups, scores, num_units=groups.num_units, max_pruning_ratio=RATIO)


@torch.no_grad()
def mask_readers_(model: nn.Module, plan: PruningPlan) -> None:
    """Set to zero, in place, every weight that reads a unit which the plan removes, and nothing else.

    Where units, roles and positions are right, the pruned network is what the units never touched.
    """
    tensors: Mapping[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, units in plan.removed.items():
        for found in plan.groups[name].slices:
            if found.role == "reader":
                removed = found.positions[np.isin(found.units, units)]
                tensors[found.tensor].index_fill_(found.dim, torch.tensor(removed), 0)


# --- what the groups say -------------------------------------------------------------------------------------------

_ENDS = (
    "is an output of the network",
    "is indexed by a tensor (aten.embedding",
    "lies along a spatial axis of a convolution",
)
"""How reasons begin that lie in the nature of a network: what comes out, rows of a table that goes in, kernels."""


def facts(groups: ChannelGroups) -> Record:
    """Return what is known of a network's groups."""
    operators = [op for t in groups.structure.propagation.traces for op in t.ops]
    without = _counted(operator_name(op.target) for op in operators if find_rules(op.target) is None)
    shares, reasons = shares_of(groups)
    locked = sorted(groups.locked, key=lambda entry: -entry.num_channels)
    return {
        "operators": sorted({operator_name(op.target) for op in operators}),
        "operators_without_rule": without,
        "traces": len(groups.structure.propagation.traces),
        "groups": len(groups),
        "exact_groups": sum(group.exact for group in groups),
        "units": groups.num_units,
        "shares": shares,
        "locked_parameters": reasons,
        "locked_layers": [[e.name, e.num_channels, shorten(e.reason)] for e in locked],
        "size_rules": [[r.module, r.path] for r in groups.analysis.changes.size_rules],
    }


def shares_of(groups: ChannelGroups) -> tuple[dict[str, float], dict[str, int]]:
    """Return what share of the parameters can be removed, and why the rest cannot.

    Every element of every parameter (tied ones once) is one of:

    - ``prunable``: on at least one of its axes it lies at a position that belongs to a unit of some group, so that
      removing the unit removes the element. The weight of a classifier is prunable although its class axis is not.
    - ``locked``: not prunable, and on at least one axis its position is locked for another reason than being an output
      of the network.
    - ``ends``: neither; all its positions are outputs of the network, lie along axes that no weight of the network
      writes or reads (kernel positions, the channels of the input image), or there is no axis longer than 1.

    Returns:
        The three shares, which add up to 1; and the number of locked elements by reason. An element that is locked on
        two axes for different reasons counts once, under both reasons joined.
    """
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    propagation = groups.structure.propagation
    numbers: dict[str, list[int]] = {}
    for number, axis in enumerate(propagation.axes):
        numbers.setdefault(axis.tensor, []).append(number)
    is_parameter = propagation.traces[0].is_parameter
    for name, shape in groups.shapes.items():
        if name in is_parameter:
            elements, why = _elements(groups, shape, numbers.get(name, []))
            counts += elements
            reasons += why
    total = max(sum(counts.values()), 1)
    shares = {key: counts[key] / total for key in ("prunable", "locked", "ends")}
    return shares, dict(reasons.most_common())


def _elements(groups: ChannelGroups, shape: tuple[int, ...], axes: list[int]) -> tuple[Counter[str], Counter[str]]:
    """Count one parameter's elements by kind, and its locked ones by reason."""
    elements: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    fates = [_fates(groups, number) for number in axes]  # the other axes have size 1
    total, rest = math.prod(shape), 0
    for combination in itertools.product(*(fate.items() for fate in fates)):
        count = math.prod(n for _, n in combination)
        why = sorted({reason for reason, _ in combination if reason and not reason.startswith(_ENDS)})
        rest += count
        elements["locked" if why else "ends"] += count
        if why:
            reasons[" + ".join(why)] += count
    elements["prunable"] += total - rest
    return elements, reasons


def _fates(groups: ChannelGroups, number: int) -> Counter[str]:
    """Count the positions of an axis that cannot be removed, by reason; ``""`` where there is none."""
    roots, locked = groups.structure.roots_on(number), groups.structure.propagation.locked
    kept = roots[groups.units_on(number) < 0]
    unique, counts = np.unique(kept, return_counts=True)
    fates: Counter[str] = Counter()
    for root, count in zip(unique.tolist(), counts.tolist(), strict=True):
        fates[shorten(locked.get(root, ""))] += count
    return fates


def _counted(names: Any) -> dict[str, int]:
    return dict(Counter(names).most_common())
