"""All that a network runs in evaluation mode, with the sizes that pruning changes left open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.shapes import ShapeRule
from lightning_taylor_prune.latency.memory import Allocation, Memory
from lightning_taylor_prune.latency.operators import Operand, Operator
from lightning_taylor_prune.latency.replay import (
    Layout,
    axes_in_memory,
    changes_operands,
    evaluated,
    is_view,
    nodes_in_order,
    storage_of,
    values_of,
)
from lightning_taylor_prune.latency.sizes import Free, FreeSizes, Size, SizedShape
from lightning_taylor_prune.latency.starts import Start, starts
from lightning_taylor_prune.tracing.recorder import Trace

Part = Operator | Memory | Start
"""What is measured by itself."""


@dataclass(frozen=True, eq=False)
class Program:
    """All operators of one forward pass in evaluation mode.

    Attributes:
        sizes: The numbers of units that pruning changes.
        parts: Each kind of call once, with the numbers of units that it depends on, and how often it is made.
    """

    sizes: FreeSizes
    parts: Sequence[tuple[Part, tuple[int, ...], int]]

    @staticmethod
    def of(groups: ChannelGroups, layout: Layout, on_cpu: bool) -> Program:
        """Find the operators of the network that was analysed.

        Args:
            groups: Its groups.
            layout: Its dtype and memory format.
            on_cpu: Whether it also takes time to get memory for results and to start after other operators.
        """
        sizes = FreeSizes.of(groups)
        full = sizes.units(groups.structure.full_counts)
        found: dict[tuple[str, tuple[int, ...]], tuple[Part, tuple[int, ...], int]] = {}
        for number in evaluation_traces(groups.structure.propagation.traces):
            reader = _Reader(groups, number, sizes, full, layout)
            for part, numbers in [*reader.operators(), *(reader.memory() if on_cpu else ())]:
                known = found.get((part.key, numbers), (part, numbers, 0))
                found[part.key, numbers] = (*known[:2], known[2] + 1)
        operators = [(part, calls) for part, _, calls in found.values() if isinstance(part, Operator)]
        beginnings = [(start, (), calls) for start, calls in starts(operators)] if on_cpu else []
        return Program(sizes, (*found.values(), *beginnings))


def evaluation_traces(traces: Sequence[Trace]) -> list[int]:
    """Return the numbers of the traces that make up one forward pass, in evaluation mode where it differs.

    That is one trace of the network, or one of each submodule that is analysed in its place.
    """
    chosen: dict[Any, int] = {}
    first = traces[0].call
    for number, trace in enumerate(traces):
        call = trace.call
        if not (call.is_submodule or (call.module, call.method) == (first.module, first.method)):
            continue
        place = (call.module, call.method)
        known = chosen.setdefault(place, number)
        if traces[known].training[call.module] and not trace.training[call.module]:
            chosen[place] = number
    return list(chosen.values())


class _Reader:
    """Reads the operators of one trace."""

    def __init__(
        self, groups: ChannelGroups, number: int, sizes: FreeSizes, full: Sequence[int], layout: Layout
    ) -> None:
        structure = groups.structure
        self._trace = structure.propagation.traces[number]
        self._sizes, self._full = sizes, full
        self._results = structure.results[number]
        self._macs = structure.propagation.macs[number]
        self._autocast = layout.autocast_of(self._trace.call)
        self._values = values_of(self._trace, layout)
        self._shapes = dict(self._find_shapes(structure.tensors))

    def _find_shapes(self, tensors: Mapping[str, ShapeRule]) -> Iterator[tuple[Node, SizedShape]]:
        """Yield the shape of every tensor in the trace."""
        names = {id(tensor): name for name, tensor in self._trace.tensors.items() if name in tensors}
        positions = {node: index for index, node in enumerate(self._trace.ops)}
        for node in self._trace.graph.nodes:
            value = node.meta.get("val")
            if node.op == "placeholder":
                known = names.get(id(value))
                yield node, tuple(value.shape) if known is None else self._sizes.shape(tensors[known])
            elif node.target is getitem:
                yield node, self._sizes.shape(self._results[positions[node.args[0]]][node.args[1]])
            elif isinstance(value, Tensor):
                yield node, self._sizes.shape(self._results[positions[node]][0])

    def operators(self) -> Iterator[tuple[Operator, tuple[int, ...]]]:
        """Yield every operator with the numbers of units that it depends on."""
        for index, node in nodes_in_order(self._trace):
            yield self._operator(index, node)

    def memory(self) -> Iterator[tuple[Memory, tuple[int, ...]]]:
        """Yield what results need memory for, with the numbers of units that it depends on."""
        first: dict[Any, tuple[int, Node]] = {}
        last: dict[Any, int] = {}
        for index, node in enumerate(self._trace.ops):
            for source in [*node.all_input_nodes, node]:
                if isinstance(value := self._values[source], Tensor):
                    last[storage_of(value)] = index
            if isinstance(value := self._values[node], Tensor) and not changes_operands(node.target):
                first.setdefault(storage_of(value), (index, node))
        for node in (n for n in self._trace.graph.nodes if n.op == "placeholder"):
            first.pop(storage_of(self._values[node]), None)
        numbers: dict[int, int] = {}
        allocations = tuple(
            Allocation(index, last[key], self._local(self._shapes[node], numbers), self._values[node].dtype.itemsize)
            for key, (index, node) in first.items()
        )
        if allocations:
            yield Memory(allocations, tuple(self._full[n] for n in numbers)), tuple(numbers)

    @staticmethod
    def _local(shape: SizedShape, numbers: dict[int, int]) -> SizedShape:
        """Return a shape with numbers of units counted within one part; ``numbers`` (global to local) is added to."""
        return tuple(
            size if isinstance(size, int) else Free(numbers.setdefault(size.number, len(numbers)), size.multiple)
            for size in shape
        )

    def _operator(self, index: int, node: Node) -> tuple[Operator, tuple[int, ...]]:
        numbers: dict[int, int] = {}

        def operand(source: Node) -> Any:
            value = self._values[source]
            if not isinstance(value, Tensor):
                return value
            shape, static = self._local(self._shapes[source], numbers), "tensor" in source.meta
            return Operand(shape, value.dtype, *axes_in_memory(value), static)

        args, kwargs = map_arg(evaluated(node), operand)
        operator = Operator(
            target=node.target,
            args=args,
            kwargs=kwargs,
            results=tuple(_known(self._sizes.shape(rule), numbers) for rule in self._results[index]),
            full=tuple(self._full[n] for n in numbers),
            is_view=is_view(node, self._values),
            contracts=bool(self._macs.get(index)),
            autocast=self._autocast,
        )
        return operator, tuple(numbers)


def _known(shape: SizedShape, numbers: Mapping[int, int]) -> tuple[Size | None, ...]:
    """Return the shape of a result, as far as the operands' numbers of units (global to local) tell it."""
    return tuple(
        size if isinstance(size, int) else Free(numbers[size.number], size.multiple) if size.number in numbers else None
        for size in shape
    )
