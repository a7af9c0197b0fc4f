"""What code outside of torch reads of tensors: NumPy arrays, as a step of the graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes


class ReadArray:
    """Stands in a graph for `numpy` of a tensor: what code outside of torch reads of it."""

    __name__ = "numpy"

    def __call__(self, tensor: Tensor, *, force: bool = False) -> Any:
        """Return a copy of what a real tensor holds."""
        with without_modes():
            return tensor.numpy(force=force).copy()

    def __str__(self) -> str:
        return "tensor.numpy"


READ_ARRAY = ReadArray()


@contextlib.contextmanager
def numpy_recorded(record: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
    """Hand `numpy` of a fake tensor, in here, to what records operators."""

    def numpy(tensor: Tensor, *, force: bool = False) -> Any:
        return record(READ_ARRAY, (tensor,), {"force": force}).copy()

    before = vars(FakeTensor).get("numpy")
    FakeTensor.numpy = numpy  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        if before is None:
            del FakeTensor.numpy
        else:
            FakeTensor.numpy = before  # type: ignore[method-assign]


@contextlib.contextmanager
def without_modes() -> Iterator[None]:
    """Compute for real in here: no fake tensors, no recording, no gradients."""
    with _disable_current_modes(), torch.no_grad():
        yield
