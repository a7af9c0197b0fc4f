"""At which numbers of units an operator is measured, the coarsest grid first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from lightning_taylor_prune.latency.program import Part

Units = tuple[int, ...]
"""Numbers of units on which an operator's shapes depend."""

STEPS = (32, 16, 8, 4, 1)
"""Numbers of channels that kernels take at once, the largest first: times are compared among multiples of the same."""

COARSE = (1.0, 0.5, 0.25)
"""Shares of an unpruned axis at which all combinations are measured."""


def step_of(channels: int) -> int:
    """Return the largest of the steps that divides a number of channels.

    Example:
        >>> [step_of(channels) for channels in (64, 48, 40, 44, 41)]
        [32, 16, 8, 4, 1]
    """
    return next((step for step in STEPS if channels % step == 0), 1)


def stages(part: Part) -> Iterator[list[Units]]:
    """Yield where an operator is to be measured, in stages, each finer than the one before; the first is unpruned."""
    full = part.full
    yield [full]
    if part.is_view or not full:
        return
    if not is_plane(part) and len(full) > 1:
        yield [_scaled(full, share) for share in COARSE[1:]]
        yield [_scaled(full, share) for share in (0.75, 0.125)]
        yield [_scaled(full, share) for share in (0.875, 0.625, 0.375)]
        return
    axes = [coarse(units, multiple) for units, multiple in zip(full, part.multiples, strict=True)]
    yield [_replaced(full, i, axis[k]) for k in (1, 2) for i, axis in enumerate(axes) if k < len(axis)]
    yield list(_lines(part, (1,), COARSE))
    yield list(product(*axes))
    yield list(_lines(part, STEPS[1:-1], COARSE[:2]))
    yield list(_lines(part, (32, 1), (0.75, 0.125)))


def is_plane(part: Part) -> bool:
    """Whether an operator reads some channels and writes others, so that all combinations must be measured."""
    return part.contracts and len(part.full) == 2


def coarse(full: int, multiple: int) -> list[int]:
    """Return numbers of units from an unpruned axis downwards, of convenient sizes.

    Args:
        full: Units on the unpruned axis.
        multiple: Channels that each unit has.

    Example:
        >>> coarse(512, 1), coarse(72, 1), coarse(12, 64)
        ([512, 256, 128], [72, 32, 16], [12, 6, 3])
    """
    found = {full: None}
    for share in COARSE[1:]:
        target = full * share
        in_units = (step // math.gcd(step, multiple) for step in STEPS)
        units = next((step for step in in_units if step <= max(target / 2, 1)), 1)
        found[max(round(target / units), 1) * units] = None
    return [units for units in found if units <= full]


def _lines(part: Part, steps: tuple[int, ...], shares: tuple[float, ...]) -> Iterator[Units]:
    """Yield where all axes but one are unpruned, and the number of channels on that one has a given step."""
    for axis, (full, multiple) in enumerate(zip(part.full, part.multiples, strict=True)):
        for share, step in product(shares, steps):
            units = _with_step(full * share, multiple, step)
            if units is not None:
                yield _replaced(part.full, axis, units)


def _with_step(target: float, multiple: int, step: int) -> int | None:
    """Return the largest number of units below a target whose channels have a given step, not far away."""
    lowest = max(math.floor(target * 0.6), 1)
    below = range(math.floor(target) - (7 if step == 1 else 0), lowest - 1, -1)
    return next((units for units in below if step_of(units * multiple) == step), None)


def _replaced(full: Units, axis: int, units: int) -> Units:
    return (*full[:axis], units, *full[axis + 1 :])


def _scaled(full: Units, share: float) -> Units:
    return tuple(max(round(units * share), 1) for units in full)
