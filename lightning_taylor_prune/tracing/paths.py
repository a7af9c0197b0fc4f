"""Every path that a call can take: in training and evaluation mode, and where the code draws which way it goes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_taylor_prune.errors import PruningWarning, TraceError
from lightning_taylor_prune.tracing.answers import with_answers
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.graph import trace
from lightning_taylor_prune.tracing.known_results import ResultsByShape
from lightning_taylor_prune.tracing.recorder import Trace, training_flags

_DRAWS, _PATIENCE = 8, 3
"""How often a call is traced at most whose code draws random numbers, and how many draws may show nothing new."""

_LARGE = 300
"""Operators from which on a network runs for real with two draws only: detectors draw which boxes they learn from."""


def trace_paths(model: nn.Module, call: Call, shapes: Mapping[str, tuple[int, ...]] | None = None) -> list[Trace]:
    """Trace a call in the present mode, and also in the other one if that runs other operators (auxiliary heads, say).

    Code that draws random numbers in Python or NumPy (LayerDrop, say) is traced with several of them. A call with
    answers stands for one path in one mode.

    Args:
        model: The network.
        call: How it is called.
        shapes: As in :func:`~lightning_taylor_prune.tracing.graph.trace`.

    Raises:
        TraceError: The call cannot be traced in the present mode.
    """
    known = ResultsByShape()
    if call.answers or call.in_other_mode:
        return [trace(model, call, _flags(model, call), shapes, known)]
    found = _draws(lambda draw: trace(model, replace(call, draw=draw), None, shapes, known))
    try:
        other = _flags(model, replace(call, in_other_mode=True))
        others = _draws(lambda draw: trace(model, replace(call, draw=draw), other, shapes, known))
    except TraceError as error:
        _warn_of_other_mode(model, call, error)
        return found
    signatures = [t.signature() for t in found]
    return [*found, *(t for t in others if t.signature() not in signatures)]


def answered_paths(model: nn.Module, calls: Sequence[Call]) -> list[Call]:
    """Return calls, with what their operators give for real, for each path that they take.

    Args:
        model: The network.
        calls: How it is called, with real tensors.

    Raises:
        TraceError: A call has no real tensors, or cannot be traced although it is known what its operators give.
    """
    return [path for call in calls for path in _answered_paths(model, call)]


def _answered_paths(model: nn.Module, call: Call) -> list[Call]:
    found = _answered(model, call)
    try:
        return [*found, *_answered(model, replace(call, in_other_mode=True))]
    except TraceError as error:
        _warn_of_other_mode(model, call, error)
        return found


def _answered(model: nn.Module, call: Call) -> list[Call]:
    flags = _flags(model, call)

    def draw(number: int) -> Trace:
        try:
            answered = with_answers(model, replace(call, draw=number), flags)
        except Exception as error:
            raise TraceError(
                f"Cannot run `{call.name or 'the network'}` once more: {error}", in_forward=True
            ) from error
        return trace(model, answered, flags)

    return [t.call for t in _draws(draw, for_real=True)]


def _draws(trace_draw: Callable[[int], Trace], for_real: bool = False) -> list[Trace]:
    """Return the trace of the first draw, and of those that show something new, if the code draws numbers at all."""
    found = [trace_draw(0)]
    if not found[0].draws_numbers:
        return found
    seen, without_news = passages(found[0]), 0
    most = 2 if for_real and len(found[0].ops) > _LARGE else _DRAWS
    for number in range(1, most):
        if without_news == _PATIENCE:
            break
        try:
            further = trace_draw(number)
        except TraceError as error:
            warnings.warn(f"A path that the network draws was not analysed: {error}", PruningWarning, stacklevel=4)
            continue
        if new := passages(further) - seen:
            found.append(further)
            seen |= new
        without_news = 0 if new else without_news + 1
    return found


def passages(recorded: Trace) -> set[Any]:
    """Return which operator takes the result of which other one, each by its operator, line and module."""
    places = dict(zip(recorded.ops, recorded.places, strict=True))
    return {
        (places.get(operand, operand.name), places.get(node, node.op))
        for node in recorded.graph.nodes
        for operand in node.all_input_nodes
    }


def _flags(model: nn.Module, call: Call) -> dict[str, bool]:
    flags = training_flags(model)
    return dict.fromkeys(flags, not flags[call.module]) if call.in_other_mode else flags


def _warn_of_other_mode(model: nn.Module, call: Call, error: TraceError) -> None:
    mode = "evaluation" if training_flags(model)[call.module] else "training"
    warnings.warn(f"What the network does in {mode} mode was not analysed: {error}", PruningWarning, stacklevel=5)
