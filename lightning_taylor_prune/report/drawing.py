"""What a drawing of a network shows, as plain data: layers and joins in the order of execution, and whose channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node

from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.shapes import varying_line
from lightning_taylor_prune.labels.space import Field, Labels
from lightning_taylor_prune.tracing.recorder import Trace

NO_GROUP = -1

TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Part:
    """Channels of a box that belong together.

    Attributes:
        group: Number of their group, :data:`NO_GROUP` where they are in none.
        channels: How many they are.
        reason: Why they are locked, ``""`` where they are not.
    """

    group: int
    channels: int
    reason: str = ""


@dataclass(frozen=True)
class Box:
    """A layer with weights, or an operator that joins several of them; what only passes on is part of the one before.

    Attributes:
        name: Name of the module that runs it, ``""`` for the network itself.
        kind: What it does, in words.
        parts: Its channels, in their order; none where no axis has channels.
        inputs: Numbers of the boxes that it reads, in the order of execution.
    """

    name: str
    kind: str
    parts: tuple[Part, ...]
    inputs: tuple[int, ...]

    @property
    def channels(self) -> int:
        """How many channels it gives."""
        return sum(part.channels for part in self.parts)


KINDS: Mapping[str, str] = {
    "add": "add",
    "cat": "concat",
    "mul": "multiply",
    "sub": "subtract",
    "scaled_dot_product_attention": "attention",
    "bmm": "matmul",
}
"""What operators are called; others have their own names."""


def boxes_of(groups: ChannelGroups) -> tuple[Box, ...]:
    """Return the boxes of a network, from its inputs to its outputs; of all submodules, where only these are traced."""
    traces = groups.structure.propagation.traces
    first = traces[0]
    found: list[Box] = []
    for number, trace in enumerate(traces):
        if trace is first or (trace.call.is_submodule and trace.training == first.training):
            found += _shifted(_Drawer(groups, number, trace).boxes(), len(found))
    return tuple(found)


def _shifted(boxes: Sequence[Box], by: int) -> Iterator[Box]:
    yield from (replace(box, inputs=tuple(number + by for number in box.inputs)) for box in boxes)


class _Drawer:
    """Turns one trace into boxes."""

    def __init__(self, groups: ChannelGroups, number: int, trace: Trace) -> None:
        self._groups, self._trace = groups, trace
        propagation = groups.structure.propagation
        self._results, self._macs = propagation.results[number], propagation.macs[number]
        self._roots, self._locked = propagation.roots, propagation.locked
        self._first_units = [group.first_unit for group in groups]
        self._sources: dict[Node, frozenset[int]] = {}
        self._boxes: list[Box] = []

    def boxes(self) -> list[Box]:
        positions = {node: op for op, node in enumerate(self._trace.ops)}
        for node in self._trace.graph.nodes:
            sources = frozenset().union(*(self._sources.get(n, frozenset()) for n in node.all_input_nodes))
            if node.op == "placeholder" and "input" in node.meta:
                sources = self._add("", "input", (), sources)
            elif node in positions and self._is_box(node, positions[node], sources):
                parts = self._parts(self._results[positions[node]])
                sources = self._add(node.meta["module"], _kind(node), parts, sources)
            self._sources[node] = sources
        ends = frozenset().union(*(self._sources[node] for node in self._trace.outputs))
        self._add("", "output", (), ends)
        return self._boxes

    def _add(self, name: str, kind: str, parts: tuple[Part, ...], sources: frozenset[int]) -> frozenset[int]:
        self._boxes.append(Box(name, kind, parts, tuple(sorted(sources))))
        return frozenset([len(self._boxes) - 1])

    def _is_box(self, node: Node, op: int, sources: frozenset[int]) -> bool:
        return len(sources) > 1 or (bool(self._macs.get(op)) and bool(sources)) or "embedding" in _operator(node)

    def _parts(self, results: Sequence[Labels]) -> tuple[Part, ...]:
        lines = [line for labels in results[:1] for field in labels.fields if len(line := self._line(field)) > 1]
        if not lines:
            return ()
        roots = max(lines, key=lambda line: (self._removable(line), len(line)))
        now = roots[self._groups.kept[roots]]
        units = self._groups.units_of(now)
        owners = np.searchsorted(self._first_units, units, side="right") - 1
        roots_outside, places = np.unique(now[units < 0], return_inverse=True)
        reasons = list(dict.fromkeys(["", *(self._locked.get(int(root), "") for root in roots_outside)]))
        codes = np.array([reasons.index(self._locked.get(int(root), "")) for root in roots_outside], dtype=np.int64)
        owners[units < 0] = -1 - codes[places]
        return _runs(owners, reasons)

    def _removable(self, roots: Field) -> bool:
        """Whether some of the roots are units: of heads and positions, heads are what can be removed."""
        return bool((self._groups.units_of(roots) >= 0).any())

    def _line(self, field: Field) -> Field:
        """Return the roots along the axis with channels; also where all of them are one unit."""
        roots = self._roots[field]
        found = varying_line(roots)
        if found is not None:
            return found[1]
        longest = int(np.argmax(roots.shape)) if roots.ndim else 0
        return np.moveaxis(roots, longest, -1).reshape(-1, roots.shape[longest])[0] if roots.ndim else roots.ravel()


def _runs(owners: Field, reasons: Sequence[str]) -> tuple[Part, ...]:
    """Count neighbours that are alike; a negative owner is -1 less the number of the reason why there is none."""
    starts = np.flatnonzero(np.diff(owners, prepend=np.iinfo(np.int64).min))
    lengths = np.diff(starts, append=len(owners))
    return tuple(
        Part(owner, length) if owner >= 0 else Part(NO_GROUP, length, reasons[-1 - owner])
        for owner, length in zip(owners[starts].tolist(), lengths.tolist(), strict=True)
    )


def _operator(node: Node) -> str:
    """Return the bare name of an operator."""
    return str(node.target).split(".")[1]


def _kind(node: Node) -> str:
    name = _operator(node).rstrip("_")
    if name.startswith("conv") and len(node.args) > 1:
        return _convolution(name, node.args)
    return KINDS.get(name, name.strip("_").replace("_", " "))


def _convolution(name: str, args: Sequence[Any]) -> str:
    """Describe a convolution: kernel, stride, groups."""
    weight = args[1].meta.get("val") if isinstance(args[1], Node) else None
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    words = ["transposed conv" if "transpose" in name else "conv", TIMES.join(map(str, shape[2:]))]
    strides = args[3] if len(args) > 3 and isinstance(args[3], (list, tuple)) else ()
    if strides and max(strides) > 1:
        words.append(f"stride {max(strides)}")
    groups = next((a for a in reversed(args[6:]) if isinstance(a, int) and not isinstance(a, bool)), 1)
    if groups > 1:
        words.append("depthwise" if shape[1:2] == (1,) else f"{groups} groups")
    return " ".join(filter(None, words))
