"""Operator -> label rule. Importing this package fills the registry."""

from lightning_taylor_prune.rules import contraction, movement, pointwise, reduction
from lightning_taylor_prune.rules.base import Notes, RuleContext, find_rule, operator_name, register_rule

__all__ = [
    "Notes",
    "RuleContext",
    "contraction",
    "find_rule",
    "movement",
    "operator_name",
    "pointwise",
    "reduction",
    "register_rule",
]
