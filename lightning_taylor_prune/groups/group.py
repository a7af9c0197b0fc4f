"""One group of channels, and where it touches the tensors of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from lightning_taylor_prune.errors import PlanError
from lightning_taylor_prune.groups.families import Family
from lightning_taylor_prune.groups.shapes import KeepMask
from lightning_taylor_prune.plan import Indices

Role = Literal["writer", "reader", "affine"]


@dataclass(frozen=True, eq=False)
class Slice:
    """Where a group touches one axis of one tensor.

    Attributes:
        tensor: Qualified name of the parameter or buffer.
        dim: The axis.
        role: ``"writer"`` (a weight whose output axis this is), ``"reader"`` (a weight whose input axis it is) or
            ``"affine"`` (any other tensor with these channels: bias, normalisation, statistics).
        positions: Positions on the axis, int64, shape ``[positions]``.
        units: The group's unit at each of them, same shape.
    """

    tensor: str
    dim: int
    role: Role
    positions: Indices
    units: Indices


@dataclass(frozen=True)
class LockedChannels:
    """Channels of one layer that cannot be removed, and why."""

    name: str
    num_channels: int
    reason: str


class ChannelGroup:
    """A family of units that share the same parameter axes: a layer's channels, or a residual stream's.

    A *unit* is the smallest thing that can be removed: usually one channel, with all weights that read and write it.

    Attributes:
        name: Name of the layer that writes the channels first.
        num_channels: Number of units now.
        original_num_channels: Number of units when the network was analysed.
        exact: Removing a unit is the same as setting it to zero; not so under normalisation across channels.
        first_unit: Number of its first unit, counted over all groups.
        roots: Root label of each unit, shape ``[num_channels]``.
    """

    def __init__(
        self, family: Family, kept: KeepMask, first_unit: int, find_slices: Callable[[ChannelGroup], Iterable[Slice]]
    ) -> None:
        self.name = family.name
        self.exact = family.exact
        self.original_num_channels = len(family.roots)
        self.first_unit = first_unit
        self.roots = family.roots[kept[family.roots]]
        self.num_channels = len(self.roots)
        self._find_slices = find_slices

    @cached_property
    def width(self) -> int:
        """Channels per unit on the axis that is written first: more than 1 for grouped convolutions and the like."""
        first = next((s for s in self.slices if s.role == "writer"), self.slices[0])
        return len(first.positions) // self.num_channels

    def __repr__(self) -> str:
        return f"ChannelGroup({self.name!r}, num_channels={self.num_channels})"

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """Every axis of every tensor that the group touches, in the order of the network's tensors."""
        return tuple(self._find_slices(self))

    def positions_of(self, removed: Iterable[Any]) -> tuple[int, ...]:
        """Return the positions of units to remove, sorted, each once.

        Args:
            removed: Positions, or a bool for every unit.

        Raises:
            PlanError: A value is no position of this group, or all units would be removed.
        """
        values = [value.item() if hasattr(value, "item") else value for value in removed]
        if values and all(isinstance(value, bool) for value in values):
            if len(values) != self.num_channels:
                raise PlanError(
                    f"Expected {self.num_channels} bools for group `{self.name}`, one per unit, but got {len(values)}."
                )
            values = [position for position, value in enumerate(values) if value]
        wrong = [value for value in values if isinstance(value, bool) or not isinstance(value, int)]
        if wrong:
            raise PlanError(
                f"Expected positions (ints) or a bool for every unit of group `{self.name}`, but got {wrong[0]!r}."
            )
        positions = tuple(sorted(set(values)))
        if positions and not 0 <= positions[0] <= positions[-1] < self.num_channels:
            raise PlanError(
                f"Group `{self.name}` has the channels 0 ... {self.num_channels - 1}, but the plan removes {positions}."
            )
        if len(positions) == self.num_channels:
            raise PlanError(
                f"The plan removes all {len(positions)} channels of group `{self.name}`; at least one must be kept."
            )
        return positions
