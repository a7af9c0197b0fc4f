"""Checks of the callback's arguments: errors name the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_taylor_prune.criteria.criterion import CRITERIA
from lightning_taylor_prune.criteria.normalize import NORMALIZATIONS
from lightning_taylor_prune.pruning.select import COSTS


def check_positive(**arguments: int) -> None:
    """Check that arguments, given by their names, are positive ints."""
    for name, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MisconfigurationException(
                f"Expected argument `{name}` to be an int of at least 1, but got {value!r}."
            )


def check_arguments(
    max_prunes: int | None,
    start_step: int,
    criterion: str,
    optimizer_state: str,
    max_pruning_ratio: float,
    exclude: Any,
    normalize: str | None,
) -> None:
    """Check the arguments that take particular values."""
    if max_prunes is not None:
        check_positive(max_prunes=max_prunes)
    if not isinstance(start_step, int) or start_step < 0:
        raise MisconfigurationException(
            f"Expected argument `start_step` to be an int of at least 0, but got {start_step!r}."
        )
    check_choice("criterion", criterion, CRITERIA)
    check_choice("optimizer_state", optimizer_state, ("reset", "slice"))
    if normalize is not None:
        check_choice("normalize", normalize, NORMALIZATIONS)
    if not 0 < max_pruning_ratio <= 1:
        raise MisconfigurationException(
            f"Expected argument `max_pruning_ratio` to be in (0, 1], but got {max_pruning_ratio!r}."
        )
    if isinstance(exclude, str):
        raise MisconfigurationException(f"Expected argument `exclude` to be a list of names, but got {exclude!r}.")


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Check that an argument is one of several names."""
    if value not in choices:
        raise MisconfigurationException(
            f"Expected argument `{name}` to be one of {', '.join(choices)}, but got {value!r}."
        )


def check_stop_at(stop_at: Mapping[str, float] | None) -> None:
    """Check the costs that a target names, and their values."""
    for name, value in (stop_at or {}).items():
        check_choice("stop_at", name, COSTS)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
            raise MisconfigurationException(f"Expected `stop_at[{name!r}]` to be a positive number, but got {value!r}.")
