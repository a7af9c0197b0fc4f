"""What an operator takes longer in a network than by itself: others have filled the caches with their data and code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from lightning_taylor_prune.latency.operators import Operator

_MOST_BYTES = 2**23


@dataclass(frozen=True, eq=False)
class Start:
    """The start of an operator after others have run; it is measured as operators are, for each kind once.

    Attributes:
        operator: The smallest call of this kind.
        nbytes: What operators of this network read and write on average, a power of 2.
    """

    operator: Operator
    nbytes: int
    full = ()
    is_view = False
    contracts = False
    degree = 1

    @property
    def multiples(self) -> tuple[int, ...]:
        """Channels of a unit; it depends on none."""
        return ()

    @property
    def autocast(self) -> tuple[str, torch.dtype] | None:
        """Device type and dtype, if it runs under autocast."""
        return self.operator.autocast

    @cached_property
    def units(self) -> tuple[int, ...]:
        """Where it is measured: with as few units as there can be."""
        return (1,) * len(self.operator.full)

    @cached_property
    def key(self) -> str:
        """What it is measured as."""
        return f"start after {self.nbytes} bytes of {self.operator.key}"

    def work(self, units: Sequence[int]) -> float:
        """Return how much it does, the same whatever is pruned."""
        return 1.0

    def seconds(self, calls: Sequence[Callable[[], Any]], time: Callable[[Callable[[], Any]], float]) -> float:
        """Measure it.

        Args:
            calls: The operator with its arguments.
            time: Returns the seconds that a function takes.
        """
        others = torch.ones(self.nbytes // 4)
        refill, call, module = partial(others.add_, 0.0), calls[0], _Module(calls[0])

        def after_others() -> None:
            refill()
            module()

        return max(time(after_others) - time(refill) - time(call), 1e-9)


class _Module(nn.Module):
    """A module that does nothing but call an operator."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self._call = call

    def forward(self) -> None:
        """Call it."""
        self._call()


def starts(operators: Sequence[tuple[Operator, int]]) -> Iterator[tuple[Start, int]]:
    """Yield the start of every kind of operator, with the number of calls.

    Args:
        operators: Operators, and how often each of them is called.
    """
    copying = [(operator, calls) for operator, calls in operators if not operator.is_view and operator.operands]
    if not copying:
        return
    moved = sum(calls * _nbytes(operator, operator.full) for operator, calls in copying)
    mean = moved / sum(calls for _, calls in copying)
    nbytes = min(2 ** round(math.log2(max(mean, 4096))), _MOST_BYTES)
    kinds: dict[Any, list[tuple[Operator, int]]] = {}
    for operator, calls in copying:
        kinds.setdefault(operator.target, []).append((operator, calls))
    for same in kinds.values():
        smallest = min((operator for operator, _ in same), key=lambda o: (_nbytes(o, (1,) * len(o.full)), o.key))
        yield Start(smallest, nbytes), sum(calls for _, calls in same)


def _nbytes(operator: Operator, units: Sequence[int]) -> int:
    return sum(operand.nbytes(units) for operand in operator.operands)
