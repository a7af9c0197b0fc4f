"""Measure the operators of a network, coarsely first, until the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice

from lightning_taylor_prune.latency.cache import Measured
from lightning_taylor_prune.latency.operators import Operator, Program
from lightning_taylor_prune.latency.progress import progress_bar
from lightning_taylor_prune.latency.steps import Units, stages
from lightning_taylor_prune.latency.timing import TimeOperator

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
        time_operator: Times an operator.
        save: Writes ``times``, from time to time and at the end.
    """

    def __init__(
        self, program: Program, times: Measured, time_operator: TimeOperator, save: Callable[[], None]
    ) -> None:
        self._times, self._time_operator, self._save = times, time_operator, save
        self._calls: dict[str, int] = {}
        self._operators: dict[str, Operator] = {}
        for operator, _, calls in program.operators:
            self._operators.setdefault(operator.key, operator)
            self._calls[operator.key] = self._calls.get(operator.key, 0) + calls
        self._saved = time.monotonic()

    @property
    def failed(self) -> list[str]:
        """The operators that cannot be run."""
        return [key for key, operator in self._operators.items() if self._times[key][operator.full] is None]

    def run(self, max_seconds: float, progress: bool) -> None:
        """Measure, for so long at most once every operator has a time, and show a bar."""
        deadline = time.monotonic() + max_seconds
        missing = [point for stage in range(_STAGES) for point in self._missing(stage)]
        if not missing:
            return
        try:
            with progress_bar(len(missing), progress) as advance:
                for stage in range(_STAGES):
                    for operator, units in [*self._missing(stage)]:
                        if stage and time.monotonic() > deadline:
                            return
                        self._measure(operator, units)
                        advance()
        finally:
            self._save()

    def _measure(self, operator: Operator, units: Units) -> None:
        self._times.setdefault(operator.key, {})[units] = self._time_operator(operator, units)
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self._save()
            self._saved = time.monotonic()

    def _missing(self, stage: int) -> Iterator[tuple[Operator, Units]]:
        """Yield what a stage still lacks, the operators that take longest first."""
        shares = self._shares()
        for key in sorted(self._operators, key=lambda key: -shares[key]):
            operator = self._operators[key]
            if stage > 1 and shares[key] < _NEGLIGIBLE:
                return
            for units in next(islice(stages(operator), stage, None), ()):
                known = self._times.get(key, {})
                if units not in known and known.get(operator.full, 1.0) is not None:
                    yield operator, units

    def _shares(self) -> dict[str, float]:
        """Return the share of the unpruned network's time that each operator has; 1 for all until all are measured."""
        full = {key: self._times.get(key, {}).get(op.full, 0.0) for key, op in self._operators.items()}
        spent = {key: (seconds or 0.0) * self._calls[key] for key, seconds in full.items()}
        if not all(key in self._times for key in self._operators):
            return dict.fromkeys(spent, 1.0)
        total = sum(spent.values()) or 1.0
        return {key: seconds / total for key, seconds in spent.items()}
