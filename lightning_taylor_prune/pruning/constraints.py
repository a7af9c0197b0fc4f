"""What a choice of units must respect, checked in one place.

Every error names the argument, what was expected and what came.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lightning_taylor_prune.errors import ArgumentError
from lightning_taylor_prune.pruning.costs import COSTS, LATENCY, Latency
from lightning_taylor_prune.pruning.layers import Layers

AUTO: Literal["auto"] = "auto"
"""Round to what the device wants."""

MEASURE_OPTIONS = ("device", "dtype", "channels_last", "num_threads", "max_seconds", "cache_dir", "progress")
"""What may be said of how latencies are measured, see :meth:`~lightning_taylor_prune.latency.LatencyTable.measure`."""


@dataclass(frozen=True)
class Constraints:
    """What a choice of units must respect.

    Attributes:
        min_channels: Units that every group keeps at least.
        max_pruning_ratio: Largest fraction of a group's original units that may be removed, in (0, 1]; or one by layer
            (named as in ``exclude``). Of several that match, the smallest counts; what none names has 0.9.
        round_to: The channels that a group keeps are a multiple of this (8 suits tensor cores); ``"auto"`` for the
            multiple at which each group runs fast, as ``latency`` tells it.
        exclude: Names or shell patterns of layers, names of modules that contain them, or classes of either: none of
            their filters is removed.
        stop_at: Costs that are to be reached and must not be undercut (names in
            :data:`~lightning_taylor_prune.pruning.costs.COSTS`, or ``latency`` in milliseconds), as a fraction of the
            original network's (a float up to 1) or absolute.
        include: The same, for the only layers whose filters are removed; ``None`` for all. Filters of a layer that are
            tied to those of others (by a residual stream) are removed where all of these are included.
        latency: Tells the latency, see :class:`~lightning_taylor_prune.pruning.costs.Latency`; or a dict of options to
            measure it with.

    Raises:
        ArgumentError: A value cannot be used.
    """

    min_channels: int = 1
    max_pruning_ratio: float | Mapping[Layers, float] = 1.0
    round_to: int | Literal["auto"] = 1
    exclude: Collection[Layers] = ()
    stop_at: Mapping[str, float] | None = None
    include: Collection[Layers] | None = None
    latency: Latency | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_int("min_channels", self.min_channels, at_least=1)
        check_round_to(self.round_to)
        check_ratio("max_pruning_ratio", self.max_pruning_ratio)
        check_layers("exclude", self.exclude)
        if self.include is not None:
            check_layers("include", self.include)
        check_latency(self.latency)
        check_stop_at(self.stop_at)

    @property
    def latencies(self) -> Latency | None:
        """What tells latencies, once it is there."""
        return None if isinstance(self.latency, Mapping) else self.latency


def check_int(name: str, value: Any, at_least: int) -> None:
    """Check that an argument is an int of at least some value; bools are refused."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise _refusal(name, f"an int of at least {at_least}", value)


def check_round_to(value: Any) -> None:
    """Check that channels can be rounded to something."""
    if isinstance(value, str):
        check_choice("round_to", value, (AUTO,))
    else:
        check_int("round_to", value, at_least=1)


def check_number(name: str, value: Any, at_least: float = -math.inf) -> None:
    """Check that an argument is a finite number of at least some value; bools and NaN are refused."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < at_least:
        raise _refusal(name, "a finite number" + (f" of at least {at_least:g}" if at_least > -math.inf else ""), value)


def check_fraction(name: str, value: Any, zero: bool = False) -> None:
    """Check that an argument is a number in (0, 1], or in [0, 1]."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (0 <= value <= 1) or (value == 0 and not zero):
        raise _refusal(name, f"a number in {'[' if zero else '('}0, 1]", value)


def check_bool(name: str, value: Any) -> None:
    """Check that an argument is a bool."""
    if not isinstance(value, bool):
        raise _refusal(name, "a bool", value)


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Check that an argument is one of several names."""
    if not isinstance(value, str) or value not in choices:
        raise _refusal(name, f"one of {', '.join(choices)}", value)


def check_names(name: str, value: Any) -> None:
    """Check that an argument is a list or tuple of strings (not one string)."""
    if not _is_list(value) or not all(isinstance(item, str) for item in value):
        raise _refusal(name, "a list of names", value)


def check_layers(name: str, value: Any) -> None:
    """Check that an argument is a list or tuple of names and classes of modules (not one of these)."""
    if not _is_list(value) or not all(_can_name_layers(item) for item in value):
        raise _refusal(name, "a list of names, patterns or classes of modules", value)
    if name == "include" and not value:
        raise _refusal(name, "a list of names that is not empty, or None for all layers", value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping))


def _can_name_layers(item: Any) -> bool:
    return isinstance(item, str) or (isinstance(item, type) and issubclass(item, nn.Module))


def check_ratio(name: str, value: Any) -> None:
    """Check that an argument is a fraction, or a dict from layers to fractions."""
    if not isinstance(value, Mapping):
        return check_fraction(name, value)
    for layers, ratio in value.items():
        if not _can_name_layers(layers):
            raise _refusal(name, "a dict from names, patterns or classes of modules to fractions", value)
        check_fraction(f"{name}[{layers!r}]", ratio)


def check_latency(value: Any) -> None:
    """Check that an argument tells latencies, or how to measure them."""
    if isinstance(value, Mapping):
        for name in value:
            check_choice("latency", name, MEASURE_OPTIONS)
    elif value is not None and not isinstance(value, Latency):
        raise _refusal("latency", "a `LatencyTable`, or a dict of options to measure one with", value)


def check_stop_at(value: Any) -> None:
    """Check the costs that a target names, and their values."""
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise _refusal("stop_at", "a dict from a cost to a number, such as {'params': 0.45}", value)
    for cost, limit in value.items():
        check_choice("stop_at", cost, (*COSTS, LATENCY))
        is_number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if not is_number or not math.isfinite(limit) or limit <= 0:
            raise ArgumentError(f"Expected `stop_at[{cost!r}]` to be a positive number, but got {limit!r}.")


def _refusal(name: str, expected: str, value: Any) -> ArgumentError:
    return ArgumentError(f"Expected argument `{name}` to be {expected}, but got {value!r}.")
