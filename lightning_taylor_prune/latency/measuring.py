"""Measure the operators of a network, coarsely first, until the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice

from lightning_taylor_prune.latency.cache import Measured
from lightning_taylor_prune.latency.program import Part, Program
from lightning_taylor_prune.latency.progress import progress_bar
from lightning_taylor_prune.latency.steps import Units, stages
from lightning_taylor_prune.latency.timing import TimePart

_SAVE_EVERY = 2.0
"""Seconds from one writing of the cache to the next."""

_NEGLIGIBLE = 0.002
"""Share of the network's time up to which an operator is measured coarsely."""

_PRECEDENCE = 3
"""So many times longer must an operator take that its next stage comes before a stage of another one."""


class Campaign:
    """Measures what a table lacks.

    Args:
        program: The operators.
        times: What is known; what is measured is added.
        time_part: Times a part.
        save: Writes ``times``, from time to time and at the end.
    """

    def __init__(self, program: Program, times: Measured, time_part: TimePart, save: Callable[[], None]) -> None:
        self._times, self._time_part, self._save = times, time_part, save
        self._calls: dict[str, int] = {}
        self._parts: dict[str, Part] = {}
        for part, _, calls in program.parts:
            self._parts.setdefault(part.key, part)
            self._calls[part.key] = self._calls.get(part.key, 0) + calls
        self._saved = time.monotonic()

    @property
    def failed(self) -> list[str]:
        """The operators that cannot be run by themselves; those that copy nothing do not count."""
        return [k for k, part in self._parts.items() if self._times[k][part.full] is None and not part.is_view]

    def run(self, max_seconds: float, progress: bool) -> None:
        """Measure, for so long at most once every operator has a time, and show a bar."""
        deadline = time.monotonic() + max_seconds
        unpruned = [(part, part.full) for part in self._parts.values() if part.full not in self._known(part)]
        planned = sum(len({u for points in stages(part) for u in points}) for part in self._parts.values())
        try:
            with progress_bar(planned, progress) as advance:
                for part, units in unpruned:
                    self._measure(part, units)
                    advance()
                for part, units in self._missing():
                    if time.monotonic() > deadline:
                        break
                    self._measure(part, units)
                    advance()
        finally:
            self._save()

    def _known(self, part: Part) -> dict[Units, float | None]:
        return self._times.setdefault(part.key, {})

    def _measure(self, part: Part, units: Units) -> None:
        self._known(part)[units] = self._time_part(part, units)
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self._save()
            self._saved = time.monotonic()

    def _missing(self) -> list[tuple[Part, Units]]:
        """Return what is still to be measured: what takes long first, and each stage after coarser ones."""
        found: list[tuple[float, Part, Units]] = []
        shares = self._shares()
        for key, part in self._parts.items():
            if self._known(part)[part.full] is None:
                continue
            chosen = islice(stages(part), 2 if shares[key] < _NEGLIGIBLE else None)
            seen = set(self._known(part))
            for stage, points in enumerate(chosen):
                rank = shares[key] / _PRECEDENCE**stage
                found.extend((rank, part, units) for units in dict.fromkeys(points) if units not in seen)
                seen.update(points)
        return [(part, units) for _, part, units in sorted(found, key=lambda entry: -entry[0])]

    def _shares(self) -> dict[str, float]:
        """Return the share of the unpruned network's time that each operator has."""
        full = {key: self._known(part)[part.full] for key, part in self._parts.items()}
        spent = {key: (seconds or 0.0) * self._calls[key] for key, seconds in full.items()}
        total = sum(spent.values()) or 1.0
        return {key: seconds / total for key, seconds in spent.items()}
