"""Bytes that are alive at once while a network runs: from one trace, at any sizes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from lightning_taylor_prune.groups.recorded_calls import as_results
from lightning_taylor_prune.groups.shapes import ShapeRule
from lightning_taylor_prune.tracing.recorder import Trace


@dataclass
class Allocation:
    """Memory that is allocated while a network runs.

    Attributes:
        factor: Bytes for each position on the axes that are counted.
        counts: Numbers of the counts that it is multiplied with.
        first: Position of the operator that allocates it; -1 for an input.
        last: Position of the last operator that uses it.
    """

    factor: float
    counts: tuple[int, ...]
    first: int
    last: int

    def size(self, counts: Sequence[int]) -> float:
        """Return its bytes at these counts."""
        return self.factor * math.prod(counts[number] for number in self.counts)


def allocations_of(trace: Trace, rules: Sequence[Sequence[ShapeRule]]) -> list[Allocation]:
    """Return what one forward pass allocates, and how long each piece is used.

    Inputs count from the beginning to the end, as the caller holds them; results that the network returns or stores, to
    the end. Everything else is freed after its last use. Views, and results of operators that work in place, share the
    memory of what they show. Parameters, buffers and constants do not count, nor what an operator needs inside only.

    Args:
        trace: The pass.
        rules: Shape rules of the results of its operators.
    """
    found: dict[Hashable, Allocation] = {}
    stored = {storage_of(n.meta["val"]) for n in trace.graph.nodes if n.op == "placeholder" and "input" not in n.meta}
    end = len(trace.ops)
    for node in trace.graph.nodes:
        if "input" in node.meta:
            found[storage_of(node.meta["val"])] = _allocation(node.meta["val"], None, -1, end)
    for position, node in enumerate(trace.ops):
        for memory in _memories_read(node):
            if memory in found:
                found[memory].last = max(found[memory].last, position)
        for rule, value in zip(rules[position], as_results(node.meta["val"]), strict=True):
            if isinstance(value, Tensor) and (memory := storage_of(value)) not in found and memory not in stored:
                found[memory] = _allocation(value, rule, position, position)
    for node in [*trace.outputs, *(entry.node for entry in trace.stored)]:
        if (allocation := found.get(storage_of(node.meta["val"]))) is not None:
            allocation.last = end
    return list(found.values())


def peak(allocations: Sequence[Allocation], counts: Sequence[int]) -> int:
    """Return the most bytes that are alive at once, at these counts."""
    if not allocations:
        return 0
    changes = np.zeros(max(a.last for a in allocations) + 3)
    sizes = np.array([a.size(counts) for a in allocations])
    np.add.at(changes, np.array([a.first for a in allocations]) + 1, sizes)
    np.subtract.at(changes, np.array([a.last for a in allocations]) + 2, sizes)
    return round(float(changes.cumsum().max()))


def storage_of(tensor: Tensor) -> Hashable:
    """Return what is equal for tensors that share memory, as long as they exist."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else ("sparse", id(tensor))


def _allocation(value: Tensor, rule: ShapeRule | None, first: int, last: int) -> Allocation:
    """Return the allocation behind a tensor, which may show a part of it only."""
    size = value.untyped_storage().nbytes() if value.layout == torch.strided else value.numel() * value.element_size()
    counted = rule.counted if rule is not None else ()
    moving = math.prod(value.shape[axis] for axis, _ in counted)
    return Allocation(size / max(moving, 1), tuple(number for _, number in counted), first, last)


def _memories_read(node: Node) -> Iterator[Hashable]:
    values = (operand.meta["val"] for operand in node.all_input_nodes)
    yield from (storage_of(value) for value in values if isinstance(value, Tensor))
