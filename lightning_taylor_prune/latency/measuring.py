"""Measure the operators of a network, coarsely first, until the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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

_STAGES = 6


class Campaign:
    """Measures what is missing.

    Args:
        program: The operators.
        times: What is known; what is measured is added.
        time_part: Times an part.
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
        """The operators that cannot be run."""
        return [key for key, part in self._parts.items() if self._times[key][part.full] is None]

    def run(self, max_seconds: float, progress: bool) -> None:
        """Measure, for so long at most once every operator has a time, and show a bar."""
        deadline = time.monotonic() + max_seconds
        missing = [point for stage in range(_STAGES) for point in self._missing(stage)]
        if not missing:
            return
        try:
            with progress_bar(len(missing), progress) as advance:
                for stage in range(_STAGES):
                    for part, units in [*self._missing(stage)]:
                        if stage and time.monotonic() > deadline:
                            return
                        self._measure(part, units)
                        advance()
        finally:
            self._save()

    def _measure(self, part: Part, units: Units) -> None:
        self._times.setdefault(part.key, {})[units] = self._time_part(part, units)
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self._save()
            self._saved = time.monotonic()

    def _missing(self, stage: int) -> Iterator[tuple[Part, Units]]:
        """Yield what a stage still lacks, the operators that take longest first."""
        shares = self._shares()
        for key in sorted(self._parts, key=lambda key: -shares[key]):
            part = self._parts[key]
            if stage > 1 and shares[key] < _NEGLIGIBLE:
                return
            for units in next(islice(stages(part), stage, None), ()):
                known = self._times.get(key, {})
                if units not in known and known.get(part.full, 1.0) is not None:
                    yield part, units

    def _shares(self) -> dict[str, float]:
        """Return the share of the unpruned network's time that each operator has; 1 for all until all are measured."""
        full = {key: self._times.get(key, {}).get(op.full, 0.0) for key, op in self._parts.items()}
        spent = {key: (seconds or 0.0) * self._calls[key] for key, seconds in full.items()}
        if not all(key in self._times for key in self._parts):
            return dict.fromkeys(spent, 1.0)
        total = sum(spent.values()) or 1.0
        return {key: seconds / total for key, seconds in spent.items()}
