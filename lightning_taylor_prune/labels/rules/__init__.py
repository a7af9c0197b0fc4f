"""Operator -> label rule, one file for each kind of operator. Importing this package fills the registry.

May import: labels.space, labels.places, modules.
"""

from lightning_taylor_prune.labels.rules import (
    backward,
    concatenation,
    convolution,
    indexing,
    matmul,
    normalization,
    padding,
    permutation,
    pointwise,
    quantization,
    recurrent,
    reduction,
    reshape,
    spatial,
    unsupported,
    vision,
)
from lightning_taylor_prune.labels.rules.registry import find_rules, operator_name, register_rule

__all__ = [
    "backward",
    "concatenation",
    "convolution",
    "find_rules",
    "indexing",
    "matmul",
    "normalization",
    "operator_name",
    "padding",
    "permutation",
    "pointwise",
    "quantization",
    "recurrent",
    "reduction",
    "register_rule",
    "reshape",
    "spatial",
    "unsupported",
    "vision",
]
