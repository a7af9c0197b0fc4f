"""Networks of which nothing, or little, can be pruned: say why, and train on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_taylor_prune.errors import PlanError, TraceError
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.pruning.constraints import Constraints
from lightning_taylor_prune.pruning.original import OriginalNetwork
from lightning_taylor_prune.pruning.outcome import PruneOutcome
from lightning_taylor_prune.pruning.reach import where
from lightning_taylor_prune.pruning.stop import StopReason
from lightning_taylor_prune.pruning.targets import targets_of
from lightning_taylor_prune.report import locked_lines

OnUnprunable = Literal["warn", "error"]
Analysed = tuple[ChannelGroups, OriginalNetwork]

MUCH_LOCKED = 0.5
"""Share of the parameters from which on a warning says that they cannot be pruned, not an information."""


_SOME_LOCKED = 0.01
"""Share from which on layers are named whose channels are outputs, too: returned states hold whole layers."""


def analysis_and_reason(
    analyse: Callable[[], Analysed], on_unprunable: OnUnprunable
) -> tuple[Analysed | None, str | None]:
    """Return the groups, if the network can be analysed, and the reason why nothing can be removed, if that is so.

    Args:
        analyse: Finds the groups.
        on_unprunable: ``"error"`` to raise the reason.

    Raises:
        TraceError: No part of the network can be traced, and that is to be an error.
        PlanError: A resumed network has other groups than when it was pruned, and that is to be an error.
        MisconfigurationException: Every channel is locked, and that is to be an error.
    """
    try:
        groups, original = analyse()
    except (TraceError, PlanError) as error:  # the latter: a resumed network runs other ways than it did
        if on_unprunable == "error":
            raise
        return None, f"nothing can be pruned. {error}"
    much = groups.locked_share > MUCH_LOCKED
    share = f"{groups.locked_share:.0%} of the parameters cannot be pruned."
    lines = [share, *locked_lines(groups, with_outputs=groups.locked_share >= _SOME_LOCKED or not groups.num_units)]
    if not groups.num_units and on_unprunable == "error":
        raise MisconfigurationException("\n".join(lines))
    if len(lines) > 1:
        (rank_zero_warn if much else rank_zero_info)("\n".join(lines))
    return (groups, original), None if groups.num_units else "nothing can be pruned: every channel is locked"


Stop = tuple[StopReason, str]


def reason_to_stop(
    outcome: PruneOutcome, constraints: Constraints, groups: ChannelGroups, prunes_done: int | None
) -> Stop | None:
    """Return why pruning ends after a prune, and the sentence that says so; ``None`` if it goes on.

    Args:
        outcome: What the prune did.
        constraints: What it respected.
        groups: The groups after it.
        prunes_done: How many prunes there were, if that is all of them.
    """
    if outcome.reason == "target":
        return StopReason.TARGET, where(targets_of(groups, constraints), groups)
    if outcome.reason == "nothing_left":
        within = "`min_channels`, `max_pruning_ratio`, `include` and `exclude`"
        return StopReason.NOTHING_LEFT, f"nothing is left to prune within {within}"
    return None if prunes_done is None else (StopReason.MAX_PRUNES, f"all {prunes_done} prunes are done")
