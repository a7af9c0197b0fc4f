"""Observers of torch's quantisation read numbers to judge them; without values they take these as valid."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from lightning_taylor_prune.tracing.isolation import Write


def writes_for_observers() -> Iterator[Write]:
    """Yield what makes observers run without values; nothing where no network can hold one yet.

    Where one range is that of all channels, nothing of it follows them: it is not looked at.
    """
    for name in ("torch.ao.quantization.observer", "torch.ao.quantization.utils"):
        module = sys.modules.get(name)
        if hasattr(module, "check_min_max_valid"):
            yield Write.of_attribute(module, "check_min_max_valid", lambda *_: True)
    if (observers := sys.modules.get("torch.ao.quantization.observer")) is not None:
        for name in _OF_ALL_CHANNELS:
            yield Write.of_attribute(getattr(observers, name), "forward", _observe_nothing)
        yield Write.of_attribute(observers.HistogramObserver, "calculate_qparams", _of_range)


def _observe_nothing(observer: Any, x: Tensor) -> Tensor:
    return x


def _of_range(observer: Any) -> Any:
    return observer._calculate_qparams(observer.min_val, observer.max_val)


_OF_ALL_CHANNELS = ("MinMaxObserver", "MovingAverageMinMaxObserver", "HistogramObserver")
