"""Rules for operators that work position by position, pass their input on, or make tensors from nothing."""

from __future__ import annotations

from typing import Any

from lightning_taylor_prune.labels import Labels, on_axis
from lightning_taylor_prune.rules.base import RuleContext, find_labels, pointwise, register_rule

# Operators that torch does not tag as pointwise, or that only are so in what they do to labels; all others that carry
# the tag come here by themselves (`find_rule`).
_POINTWISE = """
    add sub mul div where masked_fill copy lerp addcmul addcdiv clamp dropout alpha_dropout feature_dropout
    feature_alpha_dropout native_dropout leaky_relu relu6 hardtanh hardswish hardsigmoid gelu silu mish elu celu
    selu softplus rrelu threshold bernoulli normal uniform exponential fill zero nan_to_num pow rsub
    rand_like randn_like randint_like zeros_like ones_like full_like empty_like type_as floor_divide
    true_divide fake_quantize_per_tensor_affine log_sigmoid softsign tanhshrink bitwise_not logical_not square
    isfinite isinf isnan
"""
_UNCHANGED = (
    "detach alias clone contiguous to _to_copy float half double bfloat16 requires_grad lift_fresh lift_fresh_copy"
)
_FILLS = "zeros ones full empty new_zeros new_ones new_full new_empty rand randn empty_strided new_empty_strided"


@register_rule(*(f"aten.{name}" for name in dict.fromkeys(_POINTWISE.split())))
def elementwise(ctx: RuleContext, *args: Any, **kwargs: Any) -> Any:
    """Result position i depends on position i of every operand (after broadcasting)."""
    operands = find_labels([*args, kwargs])
    results = [pointwise(ctx, operands, shape) for shape in ctx.shapes]
    return results if isinstance(ctx.node.meta["val"], (tuple, list)) else results[0]


@register_rule(*(f"aten.{name}" for name in _UNCHANGED.split()))
def unchanged(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Same values, perhaps in another place or precision."""
    return x


@register_rule(*(f"aten.{name}" for name in _FILLS.split()), alternatives=1)
def fill(ctx: RuleContext, *args: Any, **kwargs: Any) -> Labels:
    """A tensor made from nothing: every position equals every other, so any may leave.

    Whether the size in the user's code follows is for verification to find out.
    """
    shape = ctx.shape
    if ctx.attempt:
        return Labels(shape)
    fields = tuple(on_axis(ctx.free(n), i, len(shape)) for i, n in enumerate(shape) if n > 1)
    return Labels(shape, fields, static=True)
