"""Run every operator of traces on labels: what operators tie by themselves, whatever else is known of the network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from lightning_taylor_prune.errors import PruningWarning
from lightning_taylor_prune.labels.outputs import why_output
from lightning_taylor_prune.labels.places import Axis, Rejection, Site
from lightning_taylor_prune.labels.rules.context import Notes, RuleContext, find_labels
from lightning_taylor_prune.labels.rules.registry import Rule, find_rules, operator_name
from lightning_taylor_prune.labels.space import Labels, LabelSpace, on_axis
from lightning_taylor_prune.tracing.progress import tick
from lightning_taylor_prune.tracing.recorder import StoredTensor, Trace, transposed


@dataclass(frozen=True, eq=False)
class LabelledRuns:
    """Traces, run on labels.

    Attributes:
        traces: The traces.
        space: The labels as the operators tie them; whoever ties more of them takes a copy.
        axes: Every axis of every parameter and buffer, tied ones once.
        parameters: Labels of parameters and buffers by name.
        runs: The traces with the labels of all results.
    """

    traces: Sequence[Trace]
    space: LabelSpace
    axes: Sequence[Axis]
    parameters: Mapping[str, Labels]
    runs: Sequence[LabelledRun]


def run_on_labels(traces: Sequence[Trace], rejected: Mapping[Site, Rejection] | None = None) -> LabelledRuns:
    """Run traces on labels.

    Args:
        traces: Traces of one network; they share its parameters.
        rejected: Operators whose rules (some or all of them) the network's code contradicted.
    """
    space = LabelSpace()
    axes, parameters = _label_parameters(space, traces[0])
    runs = [LabelledRun(space, trace, number, parameters, rejected or {}) for number, trace in enumerate(traces)]
    return LabelledRuns(traces, space, axes, parameters, runs)


def _label_parameters(space: LabelSpace, trace: Trace) -> tuple[list[Axis], dict[str, Labels]]:
    axes: list[Axis] = []
    by_identity: dict[int, Labels] = {}
    for name, tensor in trace.tensors.items():
        if id(tensor) in by_identity:
            continue
        fields = []
        for dim, size in enumerate(tensor.shape):
            if size > 1 and tensor.layout == torch.strided:  # what is sparse keeps its size
                labels = space.fresh(size)
                axes.append(Axis(name, dim, size, int(labels[0])))
                fields.append(on_axis(labels, dim, tensor.dim()))
        by_identity[id(tensor)] = Labels(tuple(tensor.shape), tuple(fields), direct=True, static=True)
    return axes, {name: by_identity[id(tensor)] for name, tensor in trace.tensors.items()}


class LabelledRun:
    """One trace run on labels."""

    def __init__(
        self,
        space: LabelSpace,
        trace: Trace,
        number: int,
        parameters: Mapping[str, Labels],
        rejected: Mapping[Site, Rejection],
    ) -> None:
        self.notes = Notes()
        self.ops = trace.ops
        self.results: list[list[Labels]] = []
        self.touched: list[list[Labels]] = []
        self._space, self._number, self._rejected = space, number, rejected
        self.made: dict[str, Labels] = {}
        self._read_later = {*trace.outputs, *(entry.node for entry in trace.stored)}
        self._values: dict[Node, Any] = {}
        self._sharing: dict[Any, list[Node]] = {}
        for node in trace.graph.nodes:
            tick()
            if node.op == "placeholder":
                self._values[node] = self._placeholder(node, parameters)
            elif node.op == "call_function":
                self._values[node] = self._call(node)
                self._depend_on_input(node)
            if isinstance(self._values.get(node), Labels) and isinstance(node.meta["val"], Tensor):  # or a number
                self._sharing.setdefault(_storage_of(node), []).append(node)
        for node in trace.outputs:
            for f in self._values[node].fields:
                space.lock(f, why_output(trace, node))
        for entry in trace.stored:
            self._keep_stored(entry)

    def _keep_stored(self, entry: StoredTensor) -> None:
        """Lock what other code may read, but not a weight that is computed from parameters before anything reads it."""
        labels: Labels = self._values[entry.node]
        if entry.attribute is not None and labels.static:
            self.made[entry.attribute] = labels
            return
        for f in labels.fields:
            self._space.lock(f, f"is stored in {entry.place} by the forward pass, where other code may read it")

    def activations(self) -> Iterator[Labels]:
        """Yield the labels of the inputs, and of every result that depends on them."""
        for node, value in self._values.items():
            if node.op == "placeholder" and isinstance(value, Labels) and "input" in node.meta:
                yield value
        yield from (value for values in self.results for value in values if not value.static)

    @staticmethod
    def _placeholder(node: Node, parameters: Mapping[str, Labels]) -> Labels:
        if "tensor" in node.meta:
            return parameters[node.meta["tensor"]]
        return Labels(tuple(node.meta["val"].shape), static="constant" in node.meta and not node.meta["of_input"])

    def labels_of(self, node: Node) -> Any:
        """Return the labels (or another value) of a node."""
        return self._values.get(node)

    def _call(self, node: Node) -> Any:
        if node.target is getitem:
            return self._values[node.args[0]][node.args[1]]  # type: ignore[index]
        if node.target is transposed:
            return self._values[node.args[0]].permuted(node.args[1])  # type: ignore[index]
        index = len(self.results)
        rules, rejection = _rules_of(node), self._rejected.get(Site(self._number, index), Rejection(0, ""))
        unused = not node.users and not _written(node) and node not in self._read_later
        ctx = RuleContext(self._space, self.notes, node, index, unused)
        args, kwargs = _map_nodes(node.args, self._values), _map_nodes(node.kwargs, self._values)
        value = self._apply(rules[min(rejection.times, len(rules) - 1)], ctx, args, kwargs)
        self.results.append(find_labels(value))
        self.touched.append(find_labels([args, kwargs, value]))
        if rejection.times >= len(rules):
            for f in (f for v in self.touched[-1] for f in v.fields):
                self._space.lock(f, rejection.message)
        return value

    def _depend_on_input(self, node: Node) -> None:
        """Mark tensors that an operator changes in place, and all their views, as dependent on the network's input."""
        value = self._values[node]
        if not isinstance(value, Labels) or value.static:
            return
        for written in _written(node):
            for other in self._sharing.get(_storage_of(written), ()):
                if self._values[other].static:
                    self._values[other] = replace(self._values[other], static=False, direct=False)

    def _apply(self, rule: Rule | None, ctx: RuleContext, args: Any, kwargs: Any) -> Any:
        """Run the rule; where there is none, or it fails, lock all labels of the operator."""
        fault = ""
        if rule is not None:
            try:
                value = rule(ctx, *args, **kwargs)
                if [v.shape for v in find_labels(value)] == ctx.shapes:
                    return value
                fault = "predicts another shape"
            except Exception as error:  # a rule may not know every form of its operator: lock, say so, go on
                fault = f"failed: {type(error).__name__}: {error}"
            name = operator_name(ctx.node.target)
            text = f"The label rule of operator `{name}` {fault}. The channels that it uses are locked."
            warnings.warn(text, PruningWarning, stacklevel=2)
        operands = find_labels([args, kwargs])
        why = f"is used by an operator {f'whose label rule {fault}' if fault else 'without a label rule'}"
        ctx.lock_all(operands, why)
        for value in operands:
            if value.direct and len(value.shape) > 1:  # a weight: its layer is to be listed with this reason
                ctx.writer(value.along(0))
        results = [Labels(shape, static=all(v.static for v in operands)) for shape in ctx.shapes]
        return results if isinstance(ctx.node.meta["val"], (tuple, list)) else results[0]


def _rules_of(node: Node) -> Sequence[Rule | None]:
    """Return the rules to try for an operator, in order; ``None`` stands for an operator without rules."""
    found = find_rules(node.target)
    return [None] if found is None else found.in_order


def _storage_of(node: Node) -> Any:
    tensor = node.meta["val"]
    is_dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided  # an operator may return a number
    return tensor.untyped_storage()._cdata if is_dense else node


def _written(node: Node) -> list[Node]:
    """Return the operands that an operator writes to in place."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    named = zip(schema.arguments, node.args, strict=False)
    pairs = [*named, *((a, node.kwargs[a.name]) for a in schema.arguments if a.name in node.kwargs)]
    values = [v for a, v in pairs if a.alias_info is not None and a.alias_info.is_write]
    return [v for v in tree_leaves(values) if isinstance(v, Node)]


def _map_nodes(value: Any, values: Mapping[Node, Any]) -> Any:
    if isinstance(value, Node):
        return values[value]
    if isinstance(value, (list, tuple)):
        return [_map_nodes(v, values) for v in value]
    if isinstance(value, Mapping):
        return {key: _map_nodes(v, values) for key, v in value.items()}
    return value
