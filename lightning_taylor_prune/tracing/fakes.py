"""Fake tensors: their mode, of another shape, and without what torch logs about them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode

from lightning_taylor_prune.tracing.tensors import memory_format_of


class FakeMode(FakeTensorMode):
    """A fake tensor mode that asks once whether there is an accelerator: torch asks the driver at every operator."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    @cached_property
    def avoid_device_init(self) -> bool:
        """Whether no accelerator may be initialised, as there is none."""
        asked: bool = FakeTensorMode.avoid_device_init.fget(self)  # type: ignore[attr-defined]
        return asked


def resized_fake(mode: FakeTensorMode, old: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a fake tensor that differs from ``old`` in its shape only.

    Args:
        mode: The fake tensor mode that is to own it.
        old: The tensor whose dtype, device, memory format and ``requires_grad`` it gets.
        shape: Its shape.
    """
    # Without the dispatcher: `torch.empty` under the fake mode takes ten times as long.
    data = torch.empty(shape, dtype=old.dtype, device="meta", memory_format=memory_format_of(old))
    return FakeTensor(mode, data, old.device).requires_grad_(old.requires_grad)


@contextlib.contextmanager
def fake_tensor_log_off() -> Iterator[None]:
    """Silence what torch logs when an operator rejects its operands: a dry run reports that as a divergence."""
    log = logging.getLogger(FakeTensor.__module__)
    before, log.disabled = log.disabled, True  # setting its level would empty the cache of every logger
    try:
        yield
    finally:
        log.disabled = before
