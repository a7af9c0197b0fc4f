"""How much each prune removes: a number of units, or a share of the way to the targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_taylor_prune.errors import ArgumentError
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.pruning.constraints import Constraints, check_int
from lightning_taylor_prune.pruning.targets import Target, targets_of

Schedule = Literal["linear", "cubic"] | Callable[[float], float]

SCHEDULES: dict[str, Callable[[float], float]] = {"linear": lambda t: t, "cubic": lambda t: 1 - (1 - t) ** 3}
"""Share of the way to the targets, 0 to 1, after a share of the prunes."""

DEFAULT_FILTERS = 8
"""Units that a prune removes where nothing else says how many."""

_POINTS = 101
"""Places in [0, 1] at which a schedule is looked at before it is used."""


@dataclass(frozen=True)
class Share:
    """What one prune may remove.

    Attributes:
        wanted: Units at most; ``None`` for as many as the costs allow.
        floors: Costs that it must not undercut, while the targets are still to come; ``None`` for the targets.
    """

    wanted: int | None
    floors: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Budget:
    """How much each prune removes.

    Attributes:
        filters: Units for each prune. ``None`` to spread the way to ``stop_at`` over ``prunes``, in units of the
            targets; where either is missing, 8 units for each prune.
        prunes: Number of prunes.
        schedule: Share of the way that is done after a share of the prunes: ``"linear"``, ``"cubic"`` (``1 - (1 -
            t) ** 3``: much at first) or a function from [0, 1] to [0, 1] that never falls and ends at 1.

    Raises:
        ArgumentError: A value cannot be used.
    """

    filters: int | None = None
    prunes: int | None = None
    schedule: Schedule = "linear"

    def __post_init__(self) -> None:
        for name, value in (("filters_per_prune", self.filters), ("max_prunes", self.prunes)):
            if value is not None:
                check_int(name, value, at_least=1)
        check_schedule(self.schedule)

    def spreads(self, constraints: Constraints) -> bool:
        """Whether the way to targets is spread over the prunes."""
        return self.filters is None and self.prunes is not None and bool(constraints.stop_at)

    def share(self, groups: ChannelGroups, constraints: Constraints, prune: int) -> Share:
        """Return what one prune may remove.

        After prune ``k`` of ``K`` a cost is to be down to ``original - schedule(k / K) * (original - target)``. Where
        it is below that before, as after a resume with more prunes, the rest of the way is spread over those to come.

        Args:
            groups: The groups of the network as it is now.
            constraints: They hold the targets.
            prune: Number of the prune, from 1; those that could remove nothing count.
        """
        if not self.spreads(constraints) or self.prunes is None:
            return Share(self.filters or DEFAULT_FILTERS)
        targets = targets_of(groups, constraints)
        done, next_ = self._at(prune - 1), self._at(prune)
        if next_ >= 1 or any(target.is_reached(groups) for target in targets):
            return Share(None)
        return Share(None, {target.name: _floor(target, groups, done, next_) for target in targets})

    def _at(self, prune: int) -> float:
        """Return the share of the way after a prune."""
        schedule = SCHEDULES[self.schedule] if isinstance(self.schedule, str) else self.schedule
        return float(schedule(min(prune / (self.prunes or 1), 1.0)))


def _floor(target: Target, groups: ChannelGroups, done: float, next_: float) -> float:
    """Return what a cost must not undercut on the way from one share to the next one, below 1."""
    now = target.measure(groups)
    planned = target.original - next_ * (target.original - target.floor)
    from_here = now - (next_ - done) / (1 - done) * (now - target.floor)
    return max(target.floor, min(planned, from_here))


def check_schedule(schedule: Any) -> None:
    """Check that a schedule leads from at least 0 to 1 and never falls.

    Raises:
        ArgumentError: It does not, or it is neither a known name nor a function.
    """
    if isinstance(schedule, str) and schedule in SCHEDULES:
        return
    if not callable(schedule):
        names = ", ".join(f'"{name}"' for name in SCHEDULES)
        raise ArgumentError(f"Expected argument `schedule` to be {names} or a function, but got {schedule!r}.")
    times = [point / (_POINTS - 1) for point in range(_POINTS)]
    _check_values(times, [schedule(time) for time in times])


def _check_values(times: Sequence[float], values: Sequence[Any]) -> None:
    expected = "Expected argument `schedule` to be a function"
    for time, value in zip(times, values, strict=True):
        if not isinstance(value, (int, float)) or not math.isfinite(value) or not -1e-9 <= value <= 1 + 1e-9:
            raise ArgumentError(f"{expected} that gives numbers in [0, 1], but at {time:g} it gives {value!r}.")
    for before, time, value, last in zip(times, times[1:], values[1:], values, strict=False):
        if value < last:
            raise ArgumentError(f"{expected} that never falls, but from {before:g} to {time:g} it falls to {value:g}.")
    if values[-1] < 1 - 1e-6:
        raise ArgumentError(f"{expected} that gives 1 at 1, where the targets are reached, but got {values[-1]:g}.")
