"""The operators that a network runs in evaluation mode, with the sizes that pruning changes left open."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.shapes import ShapeRule
from lightning_taylor_prune.latency.replay import Layout, axes_in_memory, evaluated, is_view, nodes_in_order, values_of
from lightning_taylor_prune.latency.sizes import Free, FreeSizes, Size, SizedShape, at
from lightning_taylor_prune.tracing.recorder import Trace


@dataclass(frozen=True)
class Operand:
    """A tensor that an operator takes.

    Attributes:
        shape: Its shape.
        dtype: Its type.
        order: Its axes, from the outermost to the innermost in memory.
        expanded: Axes along which it is the same memory.
        static: It is a parameter or buffer: in a network it is read once in a forward pass, and in no cache by then.
    """

    shape: SizedShape
    dtype: torch.dtype
    order: tuple[int, ...]
    expanded: tuple[int, ...] = ()
    static: bool = False

    def nbytes(self, units: Sequence[int]) -> int:
        """Return its size in bytes at given numbers of units."""
        return math.prod(at(self.shape, units)) * self.dtype.itemsize

    def sizes_in_memory(self, units: Sequence[int]) -> list[int]:
        """Return its sizes from the outermost to the innermost in memory."""
        shape = at(self.shape, units)
        return [1 if axis in self.expanded else shape[axis] for axis in self.order]

    def view(self, memory: Tensor, units: Sequence[int]) -> Tensor:
        """Return memory of the sizes :meth:`sizes_in_memory` as a tensor of its shape."""
        axes = [self.order.index(axis) for axis in range(len(self.order))]
        return memory.permute(axes).expand(at(self.shape, units))

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        layout = "" if self.order == tuple(range(len(self.order))) else f"@{''.join(map(str, self.order))}"
        same = f"x{''.join(map(str, self.expanded))}" if self.expanded else ""
        return f"{'weight ' if self.static else ''}{name}[{','.join(map(str, self.shape))}]{layout}{same}"


@dataclass(frozen=True, eq=False)
class Operator:
    """A call of an operator; with other numbers of units its operands have other shapes.

    Attributes:
        target: The operator.
        args: Positional arguments, :class:`Operand` in place of tensors.
        kwargs: Keyword arguments, likewise.
        results: Shapes of its results; ``None`` for a size that its operands do not tell.
        full: The numbers of units that its shapes depend on, as they are before pruning.
        is_view: It copies nothing, whatever the sizes are.
        contracts: It multiplies and sums up over channels, as convolutions do.
        autocast: Device type and dtype, if it runs under autocast.
    """

    target: Any
    args: Any
    kwargs: Any
    results: tuple[tuple[Size | None, ...], ...]
    full: tuple[int, ...]
    is_view: bool
    contracts: bool
    autocast: tuple[str, torch.dtype] | None

    @cached_property
    def key(self) -> str:
        """What it is measured as: equal for all calls that take as long."""
        named = [f"{name}={_text(value)}" for name, value in self.kwargs.items()]
        letters = [f" {Free(number, 1)}={units}" for number, units in enumerate(self.full)]
        autocast = f" autocast={self.autocast[1]}" if self.autocast else ""
        return f"{self.target}({', '.join([*map(_text, self.args), *named])}){''.join(letters)}{autocast}"

    @cached_property
    def operands(self) -> tuple[Operand, ...]:
        """The tensors that it takes."""
        return tuple(v for v in tree_leaves((self.args, self.kwargs)) if isinstance(v, Operand))

    @cached_property
    def multiples(self) -> tuple[int, ...]:
        """For every number of units, how many channels a unit has at least."""
        sizes = [size for operand in self.operands for size in operand.shape if isinstance(size, Free)]
        return tuple(min(s.multiple for s in sizes if s.number == n) for n in range(len(self.full)))

    @cached_property
    def degree(self) -> int:
        """2 if it reads and writes the same channels, so that its work grows with their square; else 1."""
        repeated = (
            max(Counter(s.number for s in o.shape if isinstance(s, Free)).values(), default=1) for o in self.operands
        )
        return max(repeated, default=1) if self.contracts else 1

    def work(self, units: Sequence[int]) -> float:
        """Return how much it does, to compare numbers of units: products if it contracts, else bytes."""
        if self.contracts:
            return float(math.prod(units))
        return float(sum(operand.nbytes(units) for operand in self.operands))


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    return str(value) if isinstance(value, Operand) else repr(value)


@dataclass(frozen=True, eq=False)
class Program:
    """All operators of one forward pass in evaluation mode.

    Attributes:
        sizes: The numbers of units that pruning changes.
        operators: Each kind of call once, with the numbers of units that it depends on, and how often it is made.
    """

    sizes: FreeSizes
    operators: Sequence[tuple[Operator, tuple[int, ...], int]]

    @staticmethod
    def of(groups: ChannelGroups, layout: Layout) -> Program:
        """Find the operators of the network that was analysed, in a dtype and memory format."""
        sizes = FreeSizes.of(groups)
        full = sizes.units(groups.structure.full_counts)
        found: dict[tuple[str, tuple[int, ...]], tuple[Operator, tuple[int, ...], int]] = {}
        for number in evaluation_traces(groups.structure.propagation.traces):
            for operator, numbers in _Reader(groups, number, sizes, full, layout).operators():
                known = found.get((operator.key, numbers), (operator, numbers, 0))
                found[operator.key, numbers] = (*known[:2], known[2] + 1)
        return Program(sizes, tuple(found.values()))


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

    def _operator(self, index: int, node: Node) -> tuple[Operator, tuple[int, ...]]:
        numbers: dict[int, int] = {}

        def local(size: Size) -> Size:
            if isinstance(size, int):
                return size
            return Free(numbers.setdefault(size.number, len(numbers)), size.multiple)

        def operand(source: Node) -> Any:
            value = self._values[source]
            if not isinstance(value, Tensor):
                return value
            shape, static = tuple(map(local, self._shapes[source])), "tensor" in source.meta
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
