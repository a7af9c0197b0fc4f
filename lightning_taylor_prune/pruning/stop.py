"""Why pruning ends: a value that programs compare, beside the sentence that people read."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class StopReason(StrEnum):
    """Why pruning ended; equal to plain strings, so that ``callback.stop_reason == "target"`` holds as well.

    Attributes:
        TARGET: What ``stop_at`` asks for is reached.
        NOTHING_LEFT: No unit can be removed within ``min_channels``, ``max_pruning_ratio`` and the layers asked for.
        MAX_PRUNES: All prunes are done.
        UNPRUNABLE: Nothing can be removed from this network at all.
        ACCURACY: A metric did not recover.
        OTHER: A checkpoint of an earlier version tells it in words only.

    Example:
        >>> StopReason("target") is StopReason.TARGET, StopReason.TARGET == "target"
        (True, True)
    """

    TARGET = "target"
    NOTHING_LEFT = "nothing_left"
    MAX_PRUNES = "max_prunes"
    UNPRUNABLE = "unprunable"
    ACCURACY = "accuracy"
    OTHER = "other"


_BEGINNINGS = {
    "the next filter would undercut": StopReason.TARGET,
    "nothing is left": StopReason.NOTHING_LEFT,
    "all ": StopReason.MAX_PRUNES,
    "nothing can be pruned": StopReason.UNPRUNABLE,
}
"""How the sentences begin of which the checkpoints of earlier versions consist."""


def stop_as_data(reason: StopReason | None, message: str | None) -> dict[str, str | None]:
    """Return a reason and its sentence as plain data for a checkpoint."""
    return {"stop_reason": None if reason is None else reason.value, "stop_message": message}


def stop_of_data(state: Mapping[str, Any]) -> tuple[StopReason | None, str | None]:
    """Read what :func:`stop_as_data` returned, or the sentence alone that earlier versions wrote.

    Example:
        >>> stop_of_data({"stop_reason": "all 3 prunes are done"})
        (<StopReason.MAX_PRUNES: 'max_prunes'>, 'all 3 prunes are done')
    """
    known = state["stop_reason"]
    if known is None:
        return None, None
    if (message := state.get("stop_message")) is not None:
        return StopReason(known) if known in set(StopReason) else StopReason.OTHER, message
    kinds = (kind for beginning, kind in _BEGINNINGS.items() if known.startswith(beginning))
    return next(kinds, StopReason.OTHER), known
