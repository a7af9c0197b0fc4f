"""What it takes to get memory from the system for the results of operators.

A process gives large pieces of memory back to the system when they are free, and the system hands out pages of zeros
again at the first write to each: in networks on the CPU with large activations that is a good part of the time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_taylor_prune.latency.sizes import SizedShape, at

_PAGE = 4096

_SMALL, _LARGE = 2**17, 2**25
"""Bytes that are never given back by themselves, and bytes that always are: operators that write these are slower."""


class Allocation(NamedTuple):
    """Memory for the result of an operator.

    Attributes:
        first: Position of the operator that writes it.
        last: Position of the last one that uses it.
        shape: Its shape.
        itemsize: Bytes of one number.
    """

    first: int
    last: int
    shape: SizedShape
    itemsize: int

    def nbytes(self, units: Sequence[int]) -> int:
        """Return its size in bytes at given numbers of units."""
        return math.prod(at(self.shape, units)) * self.itemsize


@dataclass(frozen=True, eq=False)
class Memory:
    """The memory that results need, one after another; it is measured as operators are.

    Attributes:
        allocations: What is needed, in the order of execution.
        full: The numbers of units that sizes depend on, as they are before pruning.
    """

    allocations: tuple[Allocation, ...]
    full: tuple[int, ...]
    is_view = False
    contracts = False
    degree = 1
    autocast = None

    @cached_property
    def key(self) -> str:
        """What it is measured as."""
        text = repr([(a.first, a.last, *map(str, a.shape), a.itemsize) for a in self.allocations])
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return f"memory for {len(self.allocations)} results {digest} {self.full}"

    @property
    def multiples(self) -> tuple[int, ...]:
        """Channels of a unit: only multiples of bytes count."""
        return (1,) * len(self.full)

    def work(self, units: Sequence[int]) -> float:
        """Return how many bytes are needed at once at most."""
        most = now = 0
        for kind, _, nbytes in self._events(units):
            now += nbytes if kind else -nbytes
            most = max(most, now)
        return float(max(most, 1))

    def call(self, units: Sequence[int]) -> Callable[[], None]:
        """Return a function that takes all this memory, writes to each of its pages, and gives it back."""
        events = self._events(units)

        def run() -> None:
            held: dict[int, Tensor] = {}
            for taken, number, nbytes in events:
                if taken:
                    held[number] = torch.empty(nbytes, dtype=torch.uint8)
                    held[number][::_PAGE].zero_()
                else:
                    del held[number]

        return run

    def _events(self, units: Sequence[int]) -> list[tuple[bool, int, int]]:
        """Return when memory is taken or given back: which is the case, whose it is, and its size in bytes."""
        sizes = [a.nbytes(units) for a in self.allocations]
        chosen = [i for i, size in enumerate(sizes) if _SMALL <= size < _LARGE]
        taken = [(self.allocations[i].first, 0, i) for i in chosen]
        freed = [(self.allocations[i].last, 1, i) for i in chosen]
        return [(not kind, i, sizes[i]) for _, kind, i in sorted([*taken, *freed])]
