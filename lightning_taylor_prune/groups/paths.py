"""What a network runs: paths that its code takes now, and paths that it took before and may take again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils._pytree import tree_leaves

from lightning_taylor_prune.labels.places import Rejection, Site
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.recorder import Trace

_ALL_RULES = 1_000
"""More rejections than an operator has rules: its channels are locked."""


@dataclass(frozen=True)
class Paths:
    """Traces of a network.

    Attributes:
        calls: How it is called.
        shown: Traces of what these calls run now.
        former: Traces of what they ran before, on paths that the code does not take now.
    """

    calls: Sequence[Call]
    shown: Sequence[Trace]
    former: Sequence[Trace] = ()

    @property
    def traces(self) -> list[Trace]:
        """All traces, those of today first."""
        return [*self.shown, *self.former]

    def unverified(self) -> dict[Site, Rejection]:
        """Return operators that only former paths call, with numbers that no dry run can compare: they are locked."""
        known = {place for trace in self.shown for place in trace.places}
        message = "is used with a fixed number, on a path that the code no longer takes, so that it cannot be verified"
        return {
            Site(len(self.shown) + number, op): Rejection(_ALL_RULES, f"{message} ({place[1]})")
            for number, trace in enumerate(self.former)
            for op, place in enumerate(trace.places)
            if place not in known and _has_sizes(trace, op)
        }


def _has_sizes(trace: Trace, op: int) -> bool:
    node = trace.ops[op]
    return any(type(leaf) is int and leaf > 1 for leaf in tree_leaves((node.args, node.kwargs)))
