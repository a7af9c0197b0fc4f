"""Scores of criteria for which every rank sees its own examples: a checkpoint holds what all of them saw."""

from __future__ import annotations

import math
import warnings
from typing import Any

from lightning_taylor_prune.criteria import Criterion
from lightning_taylor_prune.errors import PruningWarning
from lightning_taylor_prune.pruning.ranks import Ranks, from_text, to_text

HASTE = 10.0
"""Seconds to wait for other ranks where an exception has happened, perhaps on this rank alone."""


def scores_of_all_ranks(criterion: Criterion, ranks: Ranks, in_haste: bool = False) -> dict[str, Any]:
    """Return a criterion's state with the sums of all ranks, for a checkpoint that one of them writes; all must call.

    Where the others do not answer (an exception has happened on this rank alone), its own sums stand for theirs.

    Args:
        criterion: The criterion.
        ranks: The ranks of the job.
        in_haste: Whether to wait no longer than :data:`HASTE`.
    """
    own = criterion.state_dict()
    if not criterion.differs_by_rank or ranks.count == 1:
        return own
    texts = ranks.all_of(to_text({name: own[name] for name in ("total", "counts")}), HASTE if in_haste else math.inf)
    if texts is None:
        warnings.warn(
            f"Rank {ranks.rank} saves the scores of its own examples only, as the other ranks do not save.",
            PruningWarning,
            stacklevel=2,
        )
        return own
    sums = [found for text in texts if (found := from_text(text))["total"] is not None]
    both = {name: sum(found[name] for found in sums) if sums else None for name in ("total", "counts")}
    return {**own, **both, "of_all_ranks": True}
