"""What removing each unit by itself saves, in the network as it is now."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_taylor_prune.groups.group import ChannelGroup
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.plan import Indices


def unit_costs(groups: ChannelGroups, measure: Callable[[ChannelGroups], float]) -> Tensor:
    """Return what every unit saves if it alone is removed: one difference for each kind of unit in a group.

    Args:
        groups: The groups of the network as it is now.
        measure: Reads the cost.

    Returns:
        Shape ``[groups.num_units]``, float64; 0 for the last unit of a group, which cannot be removed.
    """
    saved = torch.zeros(groups.num_units, dtype=torch.float64)
    whole = measure(groups)
    for group in groups:
        if group.num_channels > 1:
            first, kinds = _kinds(groups, group)
            savings = [whole - measure(_without(groups, int(group.roots[unit]))) for unit in first]
            saved[group.first_unit : group.first_unit + group.num_channels] = torch.tensor(savings).double()[kinds]
    return saved


def _without(groups: ChannelGroups, root: int) -> ChannelGroups:
    kept = groups.kept.copy()
    kept[root] = False
    return ChannelGroups(groups.analysis, kept)


def _kinds(groups: ChannelGroups, group: ChannelGroup) -> tuple[list[int], npt.NDArray[np.int64]]:
    """Return one unit for each kind, and the kind of every unit: alike are units with as many positions on all axes."""
    columns: list[Indices] = []
    for number in groups.axes_of(group):
        units = groups.units_on(number) - group.first_unit
        inside = units[(units >= 0) & (units < group.num_channels)]
        columns.append(np.bincount(inside, minlength=group.num_channels))
    _, first, kinds = np.unique(np.stack(columns), axis=1, return_index=True, return_inverse=True)
    return first.tolist(), kinds.reshape(-1)
