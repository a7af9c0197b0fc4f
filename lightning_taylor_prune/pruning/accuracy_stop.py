"""Metrics that pruning must not spoil: what the argument `stop_if` says, and whether a validation has held it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from lightning_taylor_prune.errors import ArgumentError

Mode = Literal["max", "min"]

_KEYS = ("drop", "class_drop", "below", "above", "mode", "patience")
_LIMITS = ("drop", "class_drop", "below", "above")
_SMALLER_IS_BETTER = ("loss", "err", "perplexity")
_ROUNDING = 1e-6
"""What a metric may be beyond its limit: metrics are float32 numbers."""


@dataclass(frozen=True)
class MetricLimit:
    """What one entry of `stop_if` says.

    Attributes:
        metric: Name of a validation metric, or a shell pattern for several of them.
        drop: Largest loss against the unpruned network, in the metric's own unit; ``None`` for no such limit.
        bound: Worst value; ``None`` for no such limit.
        mode: ``"max"`` if larger is better, ``"min"`` if smaller is.
        patience: Validations in a row that may miss the limit; with the last of them the network comes back.
    """

    metric: str
    drop: float | None
    bound: float | None
    mode: Mode
    patience: int

    def names(self, known: Iterable[str]) -> list[str]:
        """Return the metrics that are meant, among those that are known."""
        known = list(known)
        return [self.metric] if self.metric in known else [name for name in known if fnmatchcase(name, self.metric)]

    def breach(self, values: Mapping[str, float], before: Mapping[str, float]) -> str | None:
        """Return how metrics miss the limit, the worst of them; ``None`` if they hold it.

        Args:
            values: Metrics of a validation by name.
            before: Those of the unpruned network.
        """
        excess = {name: self._excess(values[name], before.get(name)) for name in self.names(values)}
        missed = {name: by for name, by in excess.items() if not by <= _ROUNDING}  # so that NaN misses it
        if not missed:
            return None
        worst = max(missed, key=lambda name: math.inf if math.isnan(missed[name]) else missed[name])
        return self._words(worst, values[worst], before.get(worst))

    def _excess(self, value: float, before: float | None) -> float:
        """Return by how much a value is worse than allowed; at most 0 if it is not."""
        sign = 1 if self.mode == "max" else -1
        by = [] if self.bound is None else [sign * (self.bound - value)]
        if self.drop is not None and before is not None:
            by.append(sign * (before - value) - self.drop)
        return math.nan if math.isnan(value) else max(by, default=0.0)

    def _words(self, name: str, value: float, before: float | None) -> str:
        limits = [] if self.bound is None else [f"{'below' if self.mode == 'max' else 'above'} {self.bound:g}"]
        if self.drop is not None and before is not None:
            limits.append(f"more than {self.drop:g} worse than the unpruned network's {before:.4g}")
        return f"{name} is {value:.4g}, and must not be {' or '.join(limits)}"


def metric_limits(stop_if: Mapping[str, Mapping[str, Any]] | None) -> tuple[MetricLimit, ...]:
    """Read the argument `stop_if`.

    Raises:
        ArgumentError: It says something that cannot be meant.

    Example:
        >>> metric_limits({"val_acc": {"drop": 0.02}})[0].mode
        'max'
    """
    if stop_if is None:
        return ()
    if not isinstance(stop_if, Mapping) or not stop_if or not all(isinstance(name, str) for name in stop_if):
        raise ArgumentError(
            "Expected argument `stop_if` to be a dict from a validation metric to its limit, such as "
            f"{{'val_acc': {{'drop': 0.02}}}}, but got {stop_if!r}."
        )
    return tuple(_limit(metric, limit) for metric, limit in stop_if.items())


def _limit(metric: str, limit: Any) -> MetricLimit:
    if not isinstance(limit, Mapping):
        raise _refusal(metric, "to be a dict such as {'drop': 0.02}", limit)
    if unknown := [key for key in limit if key not in _KEYS]:
        raise _refusal(metric, f"to have keys among {', '.join(_KEYS)}", unknown[0])
    if not any(limit.get(key) is not None for key in _LIMITS):
        raise _refusal(metric, f"to say one of {', '.join(_LIMITS)}", dict(limit))
    patience = limit.get("patience", 1)
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
        raise _refusal(f"{metric}']['patience", "to be an int of at least 1", patience)
    mode = _mode(metric, limit)
    return MetricLimit(metric, _drop(metric, limit, mode), _bound(metric, limit), mode, patience)


def _mode(metric: str, limit: Mapping[str, Any]) -> Mode:
    """Return whether larger or smaller is better; a loss must say so, as a drop of it would be good news."""
    mode, bounds = limit.get("mode"), [key for key in ("below", "above") if limit.get(key) is not None]
    if mode not in ("max", "min", None):
        raise _refusal(f"{metric}']['mode", "to be 'max' or 'min'", mode)
    if len(bounds) == 2:
        raise _refusal(metric, "to say `below` (larger is better) or `above` (smaller is better)", dict(limit))
    implied: dict[str, Mode] = {"below": "max", "above": "min"}
    if bounds and mode not in (None, implied[bounds[0]]):
        raise _refusal(metric, f"to have mode {implied[bounds[0]]!r}, as it says `{bounds[0]}`", mode)
    if not bounds and mode is None and any(word in metric.lower() for word in _SMALLER_IS_BETTER):
        raise _refusal(metric, "to say mode 'min' (smaller is better) or 'max'", dict(limit))
    return mode or (implied[bounds[0]] if bounds else "max")


def _drop(metric: str, limit: Mapping[str, Any], mode: Mode) -> float | None:
    keys = [key for key in ("drop", "class_drop") if limit.get(key) is not None]
    if not keys:
        return None
    if len(keys) == 2:
        raise _refusal(metric, "to say `drop` or `class_drop`, of which the latter is for a pattern", dict(limit))
    key, drop = keys[0], limit[keys[0]]
    if key == "class_drop" and not any(mark in metric for mark in "*?["):
        raise _refusal(metric, "to be a pattern such as 'val_acc_*' where it says `class_drop`", metric)
    if not _is_number(drop) or drop <= 0:
        raise _refusal(f"{metric}']['{key}", "to be a number above 0", drop)
    if drop > 1 and mode == "max" and (key == "class_drop" or "acc" in metric.lower()):
        raise _refusal(
            f"{metric}']['{key}", "to be at most 1 (0.02 is two points; for an accuracy in percent say `below`)", drop
        )
    return float(drop)


def _bound(metric: str, limit: Mapping[str, Any]) -> float | None:
    for key in ("below", "above"):
        if (bound := limit.get(key)) is not None:
            if not _is_number(bound):
                raise _refusal(f"{metric}']['{key}", "to be a finite number", bound)
            return float(bound)
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _refusal(place: str, expected: str, value: Any) -> ArgumentError:
    return ArgumentError(f"Expected `stop_if['{place}']` {expected}, but got {value!r}.")


@dataclass(frozen=True)
class Standing:
    """Where a network stands against its limits.

    Attributes:
        before: Metrics of the unpruned network, of its last validation that had them.
        held: Whether its last validation held all limits, and nothing has been removed since.
        missed: Validations in a row that missed a limit, by the limit's metric.
        breach: How the last one missed it.
        logged: Names of all metrics of the last validation; ``None`` before the first one.
        complete: Whether that one has told all metrics that are asked for.
    """

    before: Mapping[str, float] = field(default_factory=dict)
    held: bool = False
    missed: Mapping[str, int] = field(default_factory=dict)
    breach: str | None = None
    logged: Sequence[str] | None = None
    complete: bool = False

    def after(self, limits: Sequence[MetricLimit], values: Mapping[str, float], pruned: bool) -> Standing:
        """Return the standing after a validation.

        A validation that has not logged the metric of a limit says nothing about it.

        Args:
            limits: The limits.
            values: The metrics of the validation.
            pruned: Whether something has been removed from the network; until then the values are those of the
                unpruned network.
        """
        new = {} if pruned else {name: values[name] for limit in limits for name in limit.names(values)}
        before = {**self.before, **{name: value for name, value in new.items() if math.isfinite(value)}}
        breaches = {limit.metric: limit.breach(values, before) for limit in limits if limit.names(values)}
        missed = {limit.metric: self._missed(limit.metric, breaches) for limit in limits}
        breach = next((text for text in breaches.values() if text is not None), None)
        complete = not self._unknown(limits, values, before)
        held = breach is None and (complete or self.held)
        return Standing(before, held, missed if pruned else {}, breach, sorted(values), complete)

    def _missed(self, metric: str, breaches: Mapping[str, str | None]) -> int:
        so_far = self.missed.get(metric, 0)
        if metric not in breaches:
            return so_far
        return 0 if breaches[metric] is None else so_far + 1

    def after_prune(self) -> Standing:
        """Return the standing of a network from which something has just been removed."""
        return Standing(self.before, False, {}, None, self.logged)

    def is_over(self, limits: Sequence[MetricLimit]) -> bool:
        """Whether the patience with a limit is at an end."""
        return any(self.missed.get(limit.metric, 0) >= limit.patience for limit in limits)

    def unknown(self, limits: Sequence[MetricLimit]) -> list[str]:
        """Return the metrics that no validation has told: of the unpruned network, where a drop is asked for."""
        return self._unknown(limits, {**self.before, **dict.fromkeys(self.logged or (), 0.0)}, self.before)

    @staticmethod
    def _unknown(limits: Sequence[MetricLimit], values: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
        return [x.metric for x in limits if not x.names(values) or (x.drop is not None and not x.names(before))]

    def as_data(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {**asdict(self), "logged": None if self.logged is None else list(self.logged)}
