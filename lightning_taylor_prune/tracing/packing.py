"""Sequences of several lengths, packed: their lengths are values, which fake tensors lack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch

from lightning_taylor_prune.tracing.recurrence import RECURRENT


def call_operator(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator on fake tensors, under their mode.

    Sequences that are packed count as equally long, each as long as the longest: which channels belong together does
    not depend on lengths. Costs are then those of a batch without padding. Recurrent layers run one time step.
    """
    instead = _ON_FAKES.get(func)
    result = instead(*args, **kwargs) if instead is not None else None
    return func(*args, **kwargs) if result is None else result


def _pack(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor] | None:
    """Pack ``x`` of shape ``[batch, times, ...]``, or ``[times, batch, ...]``."""
    if not isinstance(x, FakeTensor):
        return None
    in_time = x.transpose(0, 1) if batch_first else x
    times, batch = in_time.shape[:2]
    return in_time.flatten(0, 1).clone(), _known(x.fake_mode, times, batch)


def _unpack(
    data: Tensor, sizes: Tensor, batch_first: bool, padding: float, total_length: int
) -> tuple[Tensor, Tensor] | None:
    """Unpack what :func:`_pack` packed; that of others needs their lengths (``None``)."""
    if getattr(sizes, "constant", None) is None:
        return None
    batch = len(data) // len(sizes)
    times = total_length if total_length > 0 else len(sizes)
    shape = (batch, times) if batch_first else (times, batch)
    return data.new_empty((*shape, *data.shape[1:])), torch.full((batch,), times, device="cpu")


def _known(mode: FakeTensorMode, length: int, value: int) -> Tensor:
    """Return a fake vector with values: a recurrent layer reads the number of sequences from it."""
    with no_dispatch():
        values = torch.full((length,), value)
    return mode.fake_tensor_converter.from_real_tensor(mode, values, make_constant=True)


_ON_FAKES: dict[Any, Callable[..., Any]] = {
    **RECURRENT,
    torch.ops.aten._pack_padded_sequence.default: _pack,
    torch.ops.aten._pad_packed_sequence.default: _unpack,
}
