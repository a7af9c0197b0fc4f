"""How units are scored, chosen and cut: arguments that do not change while a network is pruned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from lightning_taylor_prune.criteria.criterion import CRITERIA
from lightning_taylor_prune.criteria.normalize import NORMALIZATIONS
from lightning_taylor_prune.pruning.budget import Budget
from lightning_taylor_prune.pruning.constraints import Constraints, check_bool, check_choice, check_number
from lightning_taylor_prune.pruning.optimizer_state import OptimizerStateMode
from lightning_taylor_prune.pruning.rank_by import RankBy, check_rank_by


@dataclass(frozen=True)
class Settings:
    """Settings of a :class:`~lightning_taylor_prune.pruning.pruner.Pruner`.

    Attributes:
        criterion: Name of a registered criterion.
        optimizer_state: ``"reset"`` or ``"slice"``.
        normalize: How scores are divided within each group; ``None`` for what suits the criterion.
        macs_weight: Preference for units that cost many MACs.
        rewrite_hard_coded: Whether modules whose code holds sizes as numbers get a generated `forward`.
        constraints: What a choice must respect.
        budget: How much each prune removes.
        rank_by: What units are compared by, see :func:`~lightning_taylor_prune.pruning.rank_by.rank_scores`.

    Raises:
        ArgumentError: A value cannot be used.
    """

    criterion: str = "taylor"
    optimizer_state: OptimizerStateMode = "reset"
    normalize: str | None = None
    macs_weight: float = 0.0
    rewrite_hard_coded: bool = False
    constraints: Constraints = field(default_factory=Constraints)
    budget: Budget = field(default_factory=Budget)
    rank_by: RankBy | None = None

    def __post_init__(self) -> None:
        check_choice("criterion", self.criterion, CRITERIA)
        check_choice("optimizer_state", self.optimizer_state, get_args(OptimizerStateMode))
        if self.normalize is not None:
            check_choice("normalize", self.normalize, NORMALIZATIONS)
        check_number("macs_weight", self.macs_weight, at_least=0)
        check_bool("rewrite_hard_coded", self.rewrite_hard_coded)
        check_rank_by(self.rank_by)

    @property
    def normalization(self) -> str:
        """How scores are divided within each group."""
        return self.normalize or CRITERIA[self.criterion].normalize_default
