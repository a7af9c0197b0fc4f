"""How important every unit is: Taylor criteria and baselines, accumulated over minibatches.

May import: groups, and what lies below. Importing this package fills the registry of criteria.
"""

from lightning_taylor_prune.criteria import baselines, examples, taylor
from lightning_taylor_prune.criteria.criterion import CRITERIA, Criterion, register_criterion

__all__ = ["CRITERIA", "Criterion", "baselines", "examples", "register_criterion", "taylor"]
