"""Where in a network something is: an axis of a parameter, an operator, an axis of an operator's result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lightning_taylor_prune.labels.space import Field


class Site(NamedTuple):
    """An operator: number of the trace, position among its operators."""

    trace: int
    op: int


class Rejection(NamedTuple):
    """How many of an operator's rules the network's own code contradicted, and the last message."""

    times: int
    message: str


@dataclass(frozen=True, eq=False)
class Lock:
    """Channels that the network's code needs though no operator of its own says so: labels of parameters, and why."""

    labels: Field
    reason: str


@dataclass(frozen=True)
class Axis:
    """One axis of one parameter or buffer; its labels are ``start ... start + size - 1``."""

    tensor: str
    dim: int
    size: int
    start: int


class AxisRef(NamedTuple):
    """One axis of a result: trace, position of the operator, which of its results, axis."""

    trace: int
    op: int
    number: int
    axis: int


class Tie(NamedTuple):
    """Two axes whose positions are removed together, as the network's code uses the size of one for the other.

    The first is as long as the second, or a multiple of it: then each of its blocks is tied to the second.
    """

    axis: AxisRef
    follows: AxisRef
