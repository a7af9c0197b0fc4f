"""At which numbers of units an operator is measured, the coarsest grid first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from lightning_taylor_prune.latency.operators import Operator

Units = tuple[int, ...]
"""Numbers of units on which an operator's shapes depend."""

STEPS = (32, 16, 8, 4, 1)
"""Numbers of channels that kernels take at once, the largest first: times are compared among multiples of the same."""

COARSE = (1.0, 0.5, 0.25)
"""Parts of an unpruned axis at which all combinations are measured."""


def step_of(channels: int) -> int:
    """Return the largest of the steps that divides a number of channels.

    Example:
        >>> [step_of(channels) for channels in (64, 48, 40, 44, 41)]
        [32, 16, 8, 4, 1]
    """
    return next(step for step in STEPS if channels % step == 0)


def stages(operator: Operator) -> Iterator[list[Units]]:
    """Yield where an operator is to be measured, in stages, each finer than the one before; the first is unpruned."""
    full = operator.full
    yield [full]
    if operator.is_view or not full:
        return
    if not is_plane(operator) and len(full) > 1:
        yield [_scaled(full, part) for part in COARSE[1:]]
        yield [_scaled(full, part) for part in (0.75, 0.125)]
        return
    axes = [coarse(units, multiple) for units, multiple in zip(full, operator.multiples, strict=True)]
    yield [_replaced(full, i, axis[k]) for k in (1, 2) for i, axis in enumerate(axes) if k < len(axis)]
    yield list(_lines(operator, (1,), COARSE))
    yield list(product(*axes))
    yield list(_lines(operator, STEPS[1:-1], COARSE[:2]))
    yield list(_lines(operator, (32, 1), (0.75, 0.125)))


def is_plane(operator: Operator) -> bool:
    """Whether an operator reads some channels and writes others, so that all combinations must be measured."""
    return operator.contracts and len(operator.full) == 2


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
    for part in COARSE[1:]:
        target = full * part
        step = next(s for s in STEPS if s <= max(target * multiple / 2, 1))
        units = step // math.gcd(step, multiple)
        found[max(round(target / units), 1) * units] = None
    return [units for units in found if units <= full]


def _lines(operator: Operator, steps: tuple[int, ...], parts: tuple[float, ...]) -> Iterator[Units]:
    """Yield where all axes but one are unpruned, and the number of channels on that one has a given step."""
    for axis, (full, multiple) in enumerate(zip(operator.full, operator.multiples, strict=True)):
        for part, step in product(parts, steps):
            units = _with_step(full * part, multiple, step)
            if units is not None:
                yield _replaced(operator.full, axis, units)


def _with_step(target: float, multiple: int, step: int) -> int | None:
    """Return the largest number of units below a target whose channels have a given step, not far away."""
    lowest = max(math.floor(target * 0.6), 1)
    below = range(math.floor(target) - (7 if step == 1 else 0), lowest - 1, -1)
    return next((units for units in below if step_of(units * multiple) == step), None)


def _replaced(full: Units, axis: int, units: int) -> Units:
    return (*full[:axis], units, *full[axis + 1 :])


def _scaled(full: Units, part: float) -> Units:
    return tuple(max(round(units * part), 1) for units in full)
