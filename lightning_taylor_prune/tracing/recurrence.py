"""Recurrent layers on fake tensors: one time step has the shapes of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor


def _one_step(func: Any) -> Callable[..., Any]:
    """Return how to run a recurrent operator on fake tensors: torch would run its cell at every time step.

    Args:
        func: The operator; its operands are the input, the state before it, the weights, and settings, the last of
            which says whether the batch is the first axis of the input.
    """

    def run(x: Tensor, state: Any, params: Any, *settings: Any) -> Any:
        axis = 1 if settings[-1] and x.dim() == 3 else 0
        if not isinstance(x, FakeTensor) or x.dim() != 3 or x.shape[axis] < 2:
            return None
        out, *states = func(x.narrow(axis, 0, 1), state, params, *settings)
        return (_at_all_times(out, axis, x.shape[axis]), *states)

    return run


def _at_all_times(out: Tensor, axis: int, times: int) -> Tensor:
    """Repeat the output of one time step; as torch's own, it lies in memory with time as its first axis."""
    return out.transpose(0, axis).repeat(times, 1, 1).transpose(0, axis)


def _one_step_packed(func: Any) -> Callable[..., Any]:
    """Return how to run a recurrent operator on sequences that are packed as equally long ones."""

    def run(data: Tensor, sizes: Tensor, *operands: Any) -> Any:
        known: Tensor | None = getattr(sizes, "constant", None)
        if known is None or len(known) < 2 or len(data) != len(known) * (batch := int(known[0])):
            return None
        out, *states = func(data[:batch], sizes[:1], *operands)
        return (out.repeat(len(known), 1), *states)

    return run


_NAMES = ("lstm", "gru", "rnn_tanh", "rnn_relu")

RECURRENT: dict[Any, Callable[..., Any]] = {
    **{func: _one_step(func) for func in (getattr(torch.ops.aten, name).input for name in _NAMES)},
    **{func: _one_step_packed(func) for func in (getattr(torch.ops.aten, name).data for name in _NAMES)},
}
"""For every recurrent operator how it is run on fake tensors; ``None`` where it is to be run as it is."""
