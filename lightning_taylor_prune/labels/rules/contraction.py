"""Products summed over axes: what convolutions, linear layers, matrix products and attention have in common.

Axes have letters, and letters that the result lacks are summed over. A weight whose axis is summed over *reads* the
channels there; a weight whose axis is kept in the result *writes* them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_taylor_prune.labels.rules.context import RuleContext, combine, pointwise
from lightning_taylor_prune.labels.space import Field, Labels, axes_of


def contract(
    ctx: RuleContext, operands: Sequence[Labels], letters: Sequence[str], result: str, factor: int = 1
) -> Labels:
    """Apply an einsum to labels.

    Args:
        ctx: What is known of the operator.
        operands: Labels of its tensors.
        letters: One string per operand, a letter per axis.
        result: Letters of the result; the others are summed over.
        factor: How often the product is taken (positions times kernel size, in a convolution), for the cost.
    """
    order = result + "".join(sorted(set("".join(letters)) - set(result)))
    spread = [_spread(ctx, value, names, order) for value, names in zip(operands, letters, strict=True)]
    sizes = tuple(max(value.shape[i] for value in spread) for i in range(len(order)))
    uses_input = not all(value.static for value in operands)
    for value, names in zip(spread, letters, strict=True):
        if value.static and uses_input:
            _note_roles(ctx, value, [(order.index(n), n in result) for n in names])
    fields = list(combine(ctx, spread, sizes))
    if uses_input:
        along = [next((f for f in fields if f.shape[axis] > 1), None) for axis in range(len(order))]
        ctx.count_macs(
            factor, [(size, labels_along(f, i)) for i, (size, f) in enumerate(zip(sizes, along, strict=True))]
        )
    for axis in range(len(result), len(order)):
        has_weight = any(value.static for value, names in zip(spread, letters, strict=True) if order[axis] in names)
        fields = [_sum_over(ctx, f, axis, has_weight) if f.shape[axis] > 1 else f for f in fields]
    kept = [f.reshape(f.shape[: len(result)]) for f in fields]
    return Labels(sizes[: len(result)], tuple(f for f in kept if axes_of(f)), static=not uses_input)


def labels_along(labels: Field | None, axis: int) -> Field | None:
    """Return the labels along one axis, at the first position of all others."""
    return None if labels is None else np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])[0]


def _spread(ctx: RuleContext, value: Labels, names: str, order: str) -> Labels:
    """Arrange the axes of a value in the common order, absent ones with size 1; a repeated letter is a diagonal."""
    if len(set(names)) < len(names):
        value = _diagonal(ctx, value, names)
        names = "".join(dict.fromkeys(names))
    places = [names.find(n) for n in order]
    shape = tuple(value.shape[p] if p >= 0 else 1 for p in places)
    present = [p for p in places if p >= 0]
    fields = tuple(f.transpose(present).reshape([f.shape[p] if p >= 0 else 1 for p in places]) for f in value.fields)
    return Labels(shape, fields, value.direct, value.static)


def _diagonal(ctx: RuleContext, value: Labels, names: str) -> Labels:
    """Keep one axis per letter; the repeated ones must keep their size."""
    keep = [names.index(n) for n in dict.fromkeys(names)]
    plain = [f for f in value.fields if all(names.count(names[a]) == 1 for a in axes_of(f))]
    ctx.lock_all(
        [Labels(value.shape, tuple(f for f in value.fields if all(f is not p for p in plain)))],
        "is read along a diagonal",
    )
    shape = tuple(value.shape[i] for i in keep)
    return Labels(shape, tuple(f.reshape([f.shape[i] for i in keep]) for f in plain), static=value.static)


def _note_roles(ctx: RuleContext, weight: Labels, axes: Sequence[tuple[int, bool]]) -> None:
    for axis, in_result in axes:
        (ctx.writer if in_result else ctx.reader)(weight.along(axis))


def _sum_over(ctx: RuleContext, labels: Field, axis: int, has_weight: bool) -> Field:
    """Drop an axis that is summed over. In a product of two activations, lock it, unless heads vary along it too.

    The width over which two activations are multiplied sets the scale of the result (the temperature of attention),
    and the network's code keeps that scale.
    """
    if not has_weight and not set(ctx.space.varies(labels)) - {axis}:
        ctx.lock(labels, "is summed over in a product of two activations, where its width sets the scale")
    return ctx.drop(labels, axis)


def add_bias(ctx: RuleContext, product: Labels, bias: Labels | None) -> Labels:
    """Tie a bias, if there is one, to the channels it is added to."""
    return product if bias is None else pointwise(ctx, [product, bias], product.shape)
