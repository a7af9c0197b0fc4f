"""From times at a few numbers of units to the time at any other."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

from lightning_taylor_prune.latency.program import Part
from lightning_taylor_prune.latency.steps import Units, coarse, is_plane, step_of

Times = Mapping[Units, float]
"""Seconds by numbers of units."""

TimeOf = Callable[[Units], float]


def interpolate(knots: Sequence[tuple[float, float]], x: float) -> float:
    """Return the height at ``x`` of straight lines through points that are sorted by their first coordinate.

    Outside of them the nearest line goes on, yet never below what a time that is proportional to ``x`` would be.

    Example:
        >>> interpolate([(2.0, 3.0), (4.0, 5.0)], 3.0), interpolate([(2.0, 3.0), (4.0, 5.0)], 1.0)
        (4.0, 2.0)
    """
    if len(knots) == 1:
        return knots[0][1] * x / knots[0][0]
    right = min(max(bisect_left(knots, x, key=lambda knot: knot[0]), 1), len(knots) - 1)
    (x0, y0), (x1, y1) = knots[right - 1], knots[right]
    y = y1 if x == x1 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return y if x >= x0 else max(y, y0 * x / x0)


def time_of(part: Part, times: Times) -> TimeOf:
    """Return the function from numbers of units to seconds that goes through all measured times.

    Args:
        part: An operator, or the memory of all results.
        times: What was measured, at least with all units.
    """
    if part.is_view or not part.full:
        return lambda units: times[part.full]
    if is_plane(part):
        return _Plane(part, times)
    if len(part.full) > 1:
        work = sorted({part.work(units): seconds for units, seconds in times.items()}.items())
        return lambda units: times[units] if units in times else interpolate(work, part.work(units))
    line = _Line({units[0]: seconds for units, seconds in times.items()}, part.multiples[0], part.degree)
    return lambda units: line(units[0])


class _Line:
    """Times along one axis: of all multiples of 32 channels, say, a curve of their own."""

    def __init__(self, times: Mapping[int, float], multiple: int, degree: int = 1) -> None:
        self._multiple, self._degree = multiple, degree
        knots = [(float(units**degree), seconds) for units, seconds in sorted(times.items())]
        self._curves: dict[int, list[tuple[float, float]]] = {0: knots}
        for units, seconds in sorted(times.items()):
            self._curves.setdefault(step_of(units * multiple), []).append((float(units**degree), seconds))

    def __call__(self, units: int) -> float:
        curve = self._curves.get(step_of(units * self._multiple), ())
        return interpolate(curve if len(curve) > 1 else self._curves[0], float(units**self._degree))


class _Plane:
    """Times on two axes: a coarse grid, times what single sizes on either axis take longer than it says."""

    def __init__(self, part: Part, times: Times) -> None:
        self._times, full = times, part.full
        on_axes = [{u[i]: t for u, t in times.items() if u[1 - i] == full[1 - i]} for i in (0, 1)]
        self._lines = [_Line(on, m) for on, m in zip(on_axes, part.multiples, strict=True)]
        self._axes = [
            sorted(units for units in coarse(size, m) if units in on)
            for size, m, on in zip(full, part.multiples, on_axes, strict=True)
        ]
        self._full = times[full]

    def __call__(self, units: Units) -> float:
        if units in self._times:
            return self._times[units]
        a, b = units
        on_grid = self._on_grid(a, b)
        for line, axis, size in zip(self._lines, self._axes, units, strict=True):
            smooth = interpolate([(float(n), line(n)) for n in axis], float(size))
            on_grid *= line(size) / smooth
        return on_grid

    def _on_grid(self, a: int, b: int) -> float:
        columns = [
            (float(x), interpolate([(float(y), self._corner(x, y)) for y in self._axes[1]], float(b)))
            for x in self._axes[0]
        ]
        return interpolate(columns, float(a))

    def _corner(self, a: int, b: int) -> float:
        """Return a measured time; where there is none yet, what the two axes suggest."""
        known = self._times.get((a, b))
        return known if known is not None else self._lines[0](a) * self._lines[1](b) / self._full
