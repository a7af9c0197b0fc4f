"""What a pruner notes of a cut, as the last step of the cut: either both are done or neither is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_taylor_prune.plan import PruningPlan
from lightning_taylor_prune.pruning.outcome import history_row

if TYPE_CHECKING:
    from lightning_taylor_prune.pruning.pruner import Pruner


class Bookkeeping:
    """Groups, history and criterion of a pruner after a cut.

    Args:
        pruner: The pruner, before the cut.
        plan: What is removed.
        scores: Shape ``[num_units]``, as they were compared.
        step: Number of the optimizer step.
        batch_size: Examples in a call.
    """

    def __init__(self, pruner: Pruner, plan: PruningPlan, scores: Tensor, step: int, batch_size: int) -> None:
        self._pruner, self._before = pruner, pruner.groups
        self._after = pruner.groups.after(plan)
        self._scores, self._prunes = pruner.criterion.state_dict(), len(pruner.history)
        self._row: dict[str, Any] = {
            **history_row(plan, self._before, self._after, scores, batch_size),
            "step": step,
            "count": self._prunes + 1,
            "skipped_minibatches": pruner.criterion.skipped,
            "metrics": {},
            "taken_back": False,
        }

    def commit(self) -> None:
        """Take up the new groups, with a new criterion."""
        self._pruner.groups = self._after
        self._pruner.restart_criterion()
        self._pruner.history.append(self._row)

    def rollback(self) -> None:
        """Take up the old groups, with the scores so far."""
        del self._pruner.history[self._prunes :]
        self._pruner.groups = self._before
        self._pruner.restart_criterion(self._scores)
