"""Rules for operators that work position by position, return their input, or create tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_taylor_prune.labels.rules.context import Results, RuleContext, find_labels, pointwise
from lightning_taylor_prune.labels.rules.registry import register_rule
from lightning_taylor_prune.labels.space import Labels, on_axis

# Operators without torch's tag for pointwise operators that treat labels like one. Operators with the tag need no name
# here: `find_rules` finds this rule for them.
_POINTWISE = """
    add sub mul div where masked_fill copy lerp addcmul addcdiv clamp dropout alpha_dropout feature_dropout
    feature_alpha_dropout native_dropout leaky_relu relu6 hardtanh hardswish hardsigmoid gelu silu mish elu celu
    selu softplus rrelu threshold bernoulli normal uniform exponential fill zero nan_to_num pow rsub
    rand_like randn_like randint_like zeros_like ones_like full_like empty_like type_as floor_divide
    true_divide log_sigmoid softsign tanhshrink bitwise_not logical_not square
    isfinite isinf isnan isreal real imag complex polar broadcast_tensors random cauchy geometric log_normal
    __and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__ __ilshift__ __irshift__
"""

# What `torch.func.jvp` and backward passes make of pointwise operators.
_DERIVED = """
    prims.add prims.sub prims.mul prims.div prims.neg prims.exp prims.log prims.tanh prims.pow prims.sqrt prims.rsqrt
    prims.reciprocal prims.where prims.sin prims.cos prims.erf prims.abs prims.sign prims.eq prims.ne prims.lt prims.le
    prims.gt prims.ge prims.maximum prims.minimum prims.fma prims.convert_element_type
    aten.elu_backward aten.softplus_backward aten.hardtanh_backward aten.hardswish_backward aten.hardsigmoid_backward
    aten.leaky_relu_backward aten.mish_backward aten.log_sigmoid_backward aten._make_dual aten._unpack_dual
"""

# What optimizers and averages of weights do to many tensors at once.
_FOREACH = """
    add sub mul div pow lerp addcmul addcdiv copy zero neg abs sqrt rsqrt reciprocal exp expm1 log log10 log1p log2 sign
    clamp_min clamp_max maximum minimum floor ceil round trunc frac sin cos tan asin acos atan sinh cosh tanh erf erfc
    sigmoid lgamma
"""

_UNCHANGED = (
    "detach alias clone contiguous to _to_copy float half double bfloat16 requires_grad lift_fresh lift_fresh_copy"
    " lift conj _conj _neg_view resolve_conj resolve_neg"
)

_FILLS = """
    zeros ones full empty new_zeros new_ones new_full new_empty rand randn randint empty_strided new_empty_strided
    empty_permuted
"""

_CONSTANTS = """
    arange linspace logspace eye randperm tril_indices triu_indices scalar_tensor hann_window hamming_window
    blackman_window bartlett_window kaiser_window
"""


@register_rule(*_DERIVED.split(), *(f"aten.{name}" for name in dict.fromkeys(_POINTWISE.split())))
def elementwise(ctx: RuleContext, *args: Any, **kwargs: Any) -> Results:
    """Result position i depends on position i of every operand (after broadcasting)."""
    operands = find_labels([*args, kwargs])
    results = [pointwise(ctx, operands, shape) for shape in ctx.shapes]
    return results if isinstance(ctx.node.meta["val"], (tuple, list)) else results[0]


@register_rule(*(f"aten._foreach_{name}" for name in _FOREACH.split()))
def foreach(ctx: RuleContext, *args: Any, **kwargs: Any) -> Results:
    """Every tensor of a list position by position with the one at the same place of other lists, or one for all."""
    operands = [*args, *kwargs.values()]
    lists = [tensors for operand in operands if isinstance(operand, list) and (tensors := find_labels(operand))]
    shared = [operand for operand in operands if isinstance(operand, Labels)]
    results = [pointwise(ctx, [*tensors, *shared], tensors[0].shape) for tensors in zip(*lists, strict=True)]
    if isinstance(ctx.node.meta["val"], (tuple, list)):
        return results
    return Labels((), static=all(result.static for result in results))  # in place nothing is returned


@register_rule("aten._has_compatible_shallow_copy_type")
def exchange_of_data(ctx: RuleContext, x: Labels, new: Labels) -> Labels:
    """``x.data = new``, as averages of weights are written: both have the same positions from then on."""
    if x.shape == new.shape:
        pointwise(ctx, [x, new], x.shape)
    else:
        ctx.lock_all([x, new], "gets data of another shape")
    return Labels(())


@register_rule(*(f"aten.{name}" for name in _UNCHANGED.split()))
def unchanged(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Same values, perhaps in another place or precision."""
    return x


def fill_of_fixed_size(ctx: RuleContext, *args: Any, **kwargs: Any) -> Labels:
    """A new tensor whose size is fixed in the network's code."""
    return Labels(ctx.shape)


@register_rule(*(f"aten.{name}" for name in _FILLS.split()), fallbacks=[fill_of_fixed_size])
def fill(ctx: RuleContext, *args: Any, **kwargs: Any) -> Labels:
    """A new tensor with equal values at all positions, any of which may be removed.

    The dry run finds out whether the size in the network's code follows.
    """
    shape = ctx.shape
    fields = tuple(on_axis(ctx.free(n), i, len(shape)) for i, n in enumerate(shape) if n > 1)
    return Labels(shape, fields, static=True)


@register_rule(*(f"aten.{name}" for name in _CONSTANTS.split()))
def constant(ctx: RuleContext, *args: Any, **kwargs: Any) -> Labels:
    """A new tensor whose positions differ: none can be removed."""
    return Labels(ctx.shape, static=True)


@register_rule("aten.meshgrid")
def meshgrid(ctx: RuleContext, tensors: Sequence[Labels], *args: Any, **kwargs: Any) -> list[Labels]:
    """Every result has an axis for each of the vectors."""
    order = list(range(len(tensors)))
    if kwargs.get("indexing") == "xy":
        order[:2] = reversed(order[:2])
    rank = len(tensors)
    fields = [on_axis(f.ravel(), axis, rank) for axis, v in zip(order, tensors, strict=True) for f in v.fields]
    return [Labels(shape, tuple(fields), static=all(v.static for v in tensors)) for shape in ctx.shapes]
