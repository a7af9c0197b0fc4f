"""Win back what pruning has cost: the unpruned network teaches the pruned one, in any training loop.

May import: pruning, and what lies below.
"""

from lightning_taylor_prune.recovery.distillation import DistillationLoss, attention_distance, attention_map
from lightning_taylor_prune.recovery.teacher import Teacher

__all__ = ["DistillationLoss", "Teacher", "attention_distance", "attention_map"]
