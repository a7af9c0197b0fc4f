"""What pruning can save: every cost by name, and how it is read of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.tracing.call import batch_size

Measure = Callable[[ChannelGroups], float]
"""Reads a cost of a network; never more for one that has lost channels than for one that has not."""


@runtime_checkable
class Latency(Protocol):
    """Tells the latency of networks that have lost channels, without building them: a table of measured times, say."""

    def latency(self, groups: ChannelGroups) -> float:
        """Return the time of one call in milliseconds."""

    def unit_latency(self, groups: ChannelGroups) -> Tensor:
        """Return the milliseconds that removing each unit by itself saves; float64, shape ``[groups.num_units]``."""

    def best_multiple(self, groups: ChannelGroups) -> Mapping[str, int]:
        """Return for every group the multiple of channels at which its layers run fast."""


def macs_per_example(groups: ChannelGroups) -> float:
    """Return MACs per example, as the history and the loggers have them: whole batches differ in size."""
    return groups.macs / batch_size(groups.calls[0])


COSTS: dict[str, Measure] = {
    "params": lambda groups: groups.params,
    "macs": macs_per_example,
    "filters": lambda groups: groups.num_filters,
    "memory": lambda groups: groups.memory,
    "activation_memory": lambda groups: groups.activation_memory,
}
"""Every cost that needs no measurement, by name: parameters, MACs per example, filters (units of linear layers count),
bytes of parameters and buffers, bytes of activations that are alive at once in one call (batch included)."""

LATENCY = "latency"

TOLERANCES = {LATENCY: 0.03}
"""How far above a target a cost may end, relative to the target, so that the target counts as reached."""

TOLERANCE = 0.01
"""The same for all other costs."""

_UNITS = {"memory": "bytes", "activation_memory": "bytes", LATENCY: "ms"}


def measures(latency: Latency | None = None) -> dict[str, Measure]:
    """Return how every cost is read, by name.

    Args:
        latency: Tells the latency, where that is asked for.
    """
    return COSTS if latency is None else {**COSTS, LATENCY: latency.latency}


def said(name: str, value: float) -> str:
    """Write a cost for a message.

    Example:
        >>> said("params", 272474), said("latency", 1.25)
        ('272,474', '1.25 ms')
    """
    number = f"{value:.4g}" if name == LATENCY else f"{round(value):,}"
    return " ".join(filter(None, (number, _UNITS.get(name, ""))))
