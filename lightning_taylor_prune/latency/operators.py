"""An operator as it is called in a network, with the sizes that pruning changes left open."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_taylor_prune.latency.sizes import Free, Size, SizedShape, at


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
            return float(math.prod(units) ** self.degree)
        return float(sum(operand.nbytes(units) for operand in self.operands))


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    return str(value) if isinstance(value, Operand) else repr(value)
