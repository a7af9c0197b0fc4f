"""Rules for recurrent layers and cells, and for the sequences of several lengths that they read.

A *hidden unit* is position i of every gate, of the state, and of what the gates read back from the state. All layers
and directions of one operator have states of one width, so position i of all of them is one unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any, NamedTuple

import numpy as np

from lightning_taylor_prune.labels.rules.axes import locked_positions, range_of, unite_pieces
from lightning_taylor_prune.labels.rules.context import RuleContext, pointwise
from lightning_taylor_prune.labels.rules.contraction import add_bias, contract
from lightning_taylor_prune.labels.rules.registry import operator_name, register_rule
from lightning_taylor_prune.labels.space import Field, Labels, axes_of, on_axis

_GATES = {"aten.lstm": 4, "aten.lstm_cell": 4, "aten.gru": 3, "aten.gru_cell": 3}
"""How many gates lie one after another on the first axis of a weight, by operator; elsewhere one."""

_IN_ORDER = "is read one after another by a recurrent layer"


class _Weights(NamedTuple):
    """Parameters of one layer in one direction: they read the input, the state, and (a projection) the cell."""

    into: Labels
    back: Labels
    biases: Sequence[Labels]
    projection: Labels | None = None


class _State(NamedTuple):
    """Labels along the width of a layer's state, and of its cell where that has one; each of shape ``[width]``."""

    hidden: Field | None
    cell: Field | None


@register_rule("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
def recurrent(ctx: RuleContext, *args: Any, **kwargs: Any) -> list[Labels]:
    """All layers and directions, over all times; sequences of several lengths are packed along the first axis."""
    given = _by_name(ctx, args, kwargs)
    packed = "batch_sizes" in given
    x: Labels = given["data" if packed else "input"]
    initial: list[Labels] = given["hx"] if isinstance(given["hx"], list) else [given["hx"]]
    batch = -1 if packed else int(not given["batch_first"])
    beside = _tie_batches(ctx, [(x, batch), *((state, 1 - 2 * packed) for state in initial)])
    x, state = _on_last(ctx, x), _initial_state(ctx, initial)
    directions = 1 + bool(given["bidirectional"])
    layers = _weights_of_layers(given["params"], given["has_biases"], given["num_layers"] * directions)
    for first in range(0, len(layers), directions):
        ends = [_layer(ctx, x, weights, state) for weights in layers[first : first + directions]]
        state = ends[-1]
        x = _side_by_side(ctx, x.shape[:-1], [end.hidden for end in ends], initial[0].shape[-1])
    results = [(x, x.along(-1), batch), *((s, line, 1) for s, line in zip(initial, state, strict=False))]
    return [_result(ctx.shapes[i], line, beside, axis) for i, (_, line, axis) in enumerate(results)]


@register_rule("aten.lstm_cell", "aten.gru_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
def recurrent_cell(
    ctx: RuleContext,
    x: Labels,
    hx: Labels | Sequence[Labels],
    into: Labels,
    back: Labels,
    bias_into: Labels | None = None,
    bias_back: Labels | None = None,
) -> Labels | list[Labels]:
    """One layer, one direction, one time."""
    initial = [hx] if isinstance(hx, Labels) else list(hx)
    beside = _tie_batches(ctx, [(value, 0) for value in (x, *initial)])
    weights = _Weights(into, back, [bias for bias in (bias_into, bias_back) if bias is not None])
    state = _layer(ctx, _on_last(ctx, x), weights, _initial_state(ctx, initial))
    results = [_result(shape, line, beside, 0) for shape, line in zip(ctx.shapes, state, strict=False)]
    return results if isinstance(ctx.node.meta["val"], (tuple, list)) else results[0]


def _by_name(ctx: RuleContext, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in ctx.node.target._schema.arguments]  # type: ignore[union-attr]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _weights_of_layers(params: Sequence[Labels], has_biases: bool, count: int) -> list[_Weights]:
    """Arrange a flat list of parameters by layers, directions within them."""
    step, biases = len(params) // count, 2 * has_biases
    rows = [params[start : start + step] for start in range(0, len(params), step)]
    return [_Weights(row[0], row[1], row[2 : 2 + biases], *row[2 + biases :]) for row in rows]


def _tie_batches(ctx: RuleContext, operands: Sequence[tuple[Labels, int]]) -> Field | None:
    """Tie the batch axes of input and states, and return their labels; lock other axes, but for the last.

    Args:
        ctx: The operator at hand.
        operands: Input and states, and which axis of each is the batch (negative: it has none to follow).
    """
    lines: list[Field | None] = []
    for value, axis in operands:
        beside = [f for f in value.fields if f.shape[-1] == 1]
        lines.append(next((f.ravel() for f in beside if axes_of(f) == (axis,)), None))
        ctx.lock_all([Labels(value.shape, tuple(f for f in beside if axes_of(f) != (axis,)))], _IN_ORDER)
    for line in lines[1:]:
        ctx.tie(lines[0], line, "meets a state or an input whose batch has a fixed size")
    return lines[0] if all(line is not None for line in lines) else None


def _on_last(ctx: RuleContext, value: Labels) -> Labels:
    """Return a value with nothing but its last axis tracked, alike at all times; it counts as an activation."""
    line = _width(ctx, value)
    rank = len(value.shape)
    return Labels(value.shape, () if line is None else (on_axis(line, rank - 1, rank),))


def _width(ctx: RuleContext, value: Labels) -> Field | None:
    """Return the labels along the last axis, united along all others."""
    if (labels := value.along(-1)) is None:
        return None
    for axis in axes_of(labels)[:-1]:
        labels = ctx.space.unite_along(labels, axis)
    return labels.ravel()


def _initial_state(ctx: RuleContext, states: Sequence[Labels]) -> _State:
    lines = [_width(ctx, state) for state in states]
    return _State(lines[0], lines[1] if len(lines) > 1 else None)


def _layer(ctx: RuleContext, x: Labels, weights: _Weights, state: _State) -> _State:
    """Tie one layer in one direction to the state before it; returns the state after it."""
    gates = _GATES.get(operator_name(ctx.node.target), 1)
    width = weights.back.shape[0] // gates
    total = _gates(ctx, x, weights, state)
    units = None if width == 1 else total.along(-1)
    if units is not None:
        unite_pieces(ctx, units, units.ndim - 1, gates)
        units = range_of(units, units.ndim - 1, 0, width).ravel()
    hidden = units if weights.projection is None else _projected(ctx, x.shape[:-1], units, weights.projection)
    why = "meets a state whose width is fixed"
    ctx.tie(state.hidden, hidden, why)
    if gates == 4:
        ctx.tie(state.cell, units, why)
    return _State(hidden, units)


def _gates(ctx: RuleContext, x: Labels, weights: _Weights, state: _State) -> Labels:
    """Return the sums that all gates take, one gate after another along the last axis."""
    back = _at_all_times(x.shape[:-1], state.hidden, weights.back.shape[1])
    sums = [_product(ctx, x, weights.into), _product(ctx, back, weights.back)]
    total = pointwise(ctx, sums, sums[0].shape)
    for bias in weights.biases:
        total = add_bias(ctx, total, bias)
    return total


def _projected(ctx: RuleContext, lead: tuple[int, ...], cell: Field | None, projection: Labels) -> Field | None:
    """Return the labels of a state that a weight makes from the cell at every time."""
    labels = _product(ctx, _at_all_times(lead, cell, projection.shape[1]), projection).along(-1)
    return None if labels is None else labels.ravel()


def _product(ctx: RuleContext, x: Labels, weight: Labels) -> Labels:
    lead = ascii_lowercase[: len(x.shape) - 1]
    return contract(ctx, [x, weight], [lead + "z", "yz"], lead + "y")


def _at_all_times(lead: tuple[int, ...], line: Field | None, width: int) -> Labels:
    rank = len(lead) + 1
    return Labels((*lead, width), () if line is None else (on_axis(line, rank - 1, rank),))


def _side_by_side(ctx: RuleContext, lead: tuple[int, ...], lines: Sequence[Field | None], width: int) -> Labels:
    """Return the outputs of all directions, one after another along the last axis."""
    if all(line is None for line in lines):
        return Labels((*lead, len(lines) * width))
    parts = [locked_positions(ctx, width) if line is None else line for line in lines]
    return _at_all_times(lead, np.concatenate(parts), len(lines) * width)


def _result(shape: tuple[int, ...], line: Field | None, batch: Field | None, axis: int) -> Labels:
    rank = len(shape)
    placed = [(line, rank - 1), (batch if axis >= 0 else None, axis)]
    return Labels(shape, tuple(on_axis(labels, dim, rank) for labels, dim in placed if labels is not None))


@register_rule("aten._pack_padded_sequence")
def pack(ctx: RuleContext, x: Labels, lengths: Labels, batch_first: bool) -> list[Labels]:
    """Batch and time become one axis, on which the padding is left out: both keep their sizes."""
    return [_behind(ctx, x, 2, ctx.shapes[0]), Labels(ctx.shapes[1])]


@register_rule("aten._pad_packed_sequence")
def unpack(ctx: RuleContext, x: Labels, sizes: Labels, *args: Any) -> list[Labels]:
    """The axis of batch and time becomes two again, with padding."""
    return [_behind(ctx, x, 1, ctx.shapes[0]), Labels(ctx.shapes[1])]


def _behind(ctx: RuleContext, x: Labels, leading: int, shape: tuple[int, ...]) -> Labels:
    """Let the axes behind the leading ones pass through to ``shape``; what varies along these locks."""
    fields = []
    for f in x.fields:
        if max(f.shape[:leading]) > 1:
            ctx.lock(f, "is packed with sequences of other lengths")
        else:
            rest = f.shape[leading:]
            fields.append(f.reshape((1,) * (len(shape) - len(rest)) + rest))
    return Labels(shape, tuple(fields))
