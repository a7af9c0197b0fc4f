"""Immutable data: which units to remove, and which positions on each axis of a tensor are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lightning_taylor_prune.groups.groups import ChannelGroups

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cut:
    """One axis of one parameter or buffer, and the positions on it that are kept.

    Attributes:
        tensor: Qualified name of the parameter or buffer in the pruned module.
        dim: The axis.
        size: Length of the axis before the cut.
        keep: Sorted positions that are kept, int64, shape ``[kept]``.
        positions_known: False where only the number of positions is known, as when weights are loaded.

    Example:
        >>> Cut("conv1.weight", dim=0, size=4, keep=np.array([0, 1, 3])).keep
        array([0, 1, 3])
    """

    tensor: str
    dim: int
    size: int
    keep: Indices
    positions_known: bool = True

    def __post_init__(self) -> None:
        self.keep.setflags(write=False)


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """What to remove from a network; :func:`~lightning_taylor_prune.pruning.prune.prune_` removes all of it or nothing.

    Attributes:
        removed: Group name -> positions of the units to remove, within that group, sorted.
        cuts: The same for every axis of every parameter and buffer concerned.
        groups: The groups that the plan was made from: with them
            :func:`~lightning_taylor_prune.pruning.prune.prune_` verifies the outcome.

    Example:
        >>> import torch
        >>> from lightning_taylor_prune import find_groups
        >>> model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> plan = find_groups(model, torch.zeros(1, 5)).plan({"0": [2]})
        >>> len(plan), [(cut.tensor, cut.dim, cut.keep.tolist()) for cut in plan.cuts]
        (1, [('0.weight', 0, [0, 1, 3]), ('0.bias', 0, [0, 1, 3]), ('2.weight', 1, [0, 1, 3])])
    """

    removed: Mapping[str, tuple[int, ...]]
    cuts: tuple[Cut, ...]
    groups: ChannelGroups = field(repr=False)

    def __len__(self) -> int:
        """Number of units to remove."""
        return sum(len(units) for units in self.removed.values())

    def __bool__(self) -> bool:
        return bool(self.cuts)

    def by_tensor(self) -> Iterator[tuple[str, tuple[Cut, ...]]]:
        """Yield each tensor's name with its cuts, one per axis."""
        cuts: dict[str, list[Cut]] = {}
        for cut in self.cuts:
            cuts.setdefault(cut.tensor, []).append(cut)
        yield from ((name, tuple(group)) for name, group in cuts.items())

    def digest(self) -> str:
        """SHA-256 over every cut, equal on all ranks exactly when they would cut the same."""
        state = hashlib.sha256()
        for cut in self.cuts:
            state.update(f"{cut.tensor}\0{cut.dim}\0{cut.size}\0".encode())
            state.update(cut.keep.tobytes())
        return state.hexdigest()
