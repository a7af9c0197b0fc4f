"""Time one operator on the device in use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from lightning_taylor_prune.latency.memory import Memory
from lightning_taylor_prune.latency.operators import Operand, Operator
from lightning_taylor_prune.latency.program import Part
from lightning_taylor_prune.latency.replay import autocast, changes_operands
from lightning_taylor_prune.latency.sizes import at
from lightning_taylor_prune.latency.starts import Start
from lightning_taylor_prune.latency.steps import Units

TimePart = Callable[[Part, Units], float | None]
"""From an operator, or the memory for all results, at numbers of units to seconds; ``None`` where it cannot run."""


_COLD_BYTES = 64 * 2**20
"""As many bytes of weights are read in turn, more than caches hold."""

_MOST_COPIES = 256


class Stopwatch:
    """Times operators with :class:`torch.utils.benchmark.Timer`, which waits for accelerators.

    An operator is called with other weights each time, so that these come from memory, as they do in a network.

    Args:
        device: Where they run.
        num_threads: Threads on the CPU.
        min_run_time: Seconds that one measurement takes at least.
    """

    def __init__(self, device: torch.device, num_threads: int, min_run_time: float = 0.02) -> None:
        self._device, self._threads, self._min_run_time = device, num_threads, min_run_time
        self._memory: dict[torch.dtype, Tensor] = {}

    def __call__(self, part: Part, units: Units) -> float | None:
        """Return the median time in seconds, ``None`` where an operator cannot run with so many units."""
        cuda = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.inference_mode(), autocast(part.autocast):
            if isinstance(part, Memory):
                return self._time(part.call(units))
            if isinstance(part, Start):
                calls = self._calls(part.operator, part.units)
                return 1e-9 if calls is None else part.seconds(calls, partial(self._time, thorough=5))
            calls = self._calls(part, units)
            return None if calls is None else self._time(*calls)

    def _time(self, *calls: Callable[[], Any], thorough: int = 1) -> float:
        """Return the median time of functions that are called in turn, ``thorough`` times as long as usual."""
        from torch.utils.benchmark import Timer  # to import it takes a third of a second

        timer = Timer("next(calls)()", globals={"calls": cycle(calls)}, num_threads=self._threads)
        measured = timer.blocked_autorange(min_run_time=thorough * self._min_run_time)
        if not measured.has_warnings:
            return float(measured.median)
        again = timer.blocked_autorange(min_run_time=thorough * self._min_run_time)  # something else ran meanwhile
        return min(float(measured.median), float(again.median))

    def _calls(self, part: Operator, units: Units) -> list[Callable[[], Any]] | None:
        """Return the operator with several weights, or ``None`` if it fails or gives other shapes than predicted."""
        weights = sum(o.nbytes(units) for o in part.operands if o.static)
        copies = min(math.ceil(_COLD_BYTES / weights), _MOST_COPIES) if weights else 1
        makers = Operands(part, units, self._device, self._memory)
        try:
            calls: list[Callable[[], Any]] = [partial(part.target, *a, **k) for a, k in makers.arguments(copies)]
            results = calls[0]()
        except Exception:  # integers among its arguments need another size, there is no kernel, or no memory
            return None
        fits = all(map(partial(_fits, units), part.results, _shapes(results)))
        return calls if fits else None


class Operands:
    """Makes the arguments of an operator.

    Args:
        operator: The operator.
        units: Numbers of units, one for each of ``operator.full``.
        device: Where its tensors are.
        memory: Numbers from which operands are taken, by dtype; what lacks is added.
    """

    def __init__(
        self, operator: Operator, units: Units, device: torch.device, memory: dict[torch.dtype, Tensor]
    ) -> None:
        self._operator, self._units, self._device, self._memory = operator, units, device, memory
        self._in_place = changes_operands(operator.target)
        self._activations: dict[int, Tensor] = {}
        self._offset = 0

    def arguments(self, copies: int) -> Iterator[tuple[list[Any], dict[str, Any]]]:
        """Yield positional and keyword arguments, each time with the same activations and other weights."""
        schema = self._operator.target._schema
        for _ in range(copies):
            args, kwargs = map_aggregate((list(self._operator.args), dict(self._operator.kwargs)), self._make)
            args = list(args)
            for position, argument in enumerate(schema.arguments[: len(args)]):
                if argument.name in _FOLLOWING:
                    args[position] = _FOLLOWING[argument.name](self._operator, self._units, args[position])
            yield args, dict(kwargs)

    def _make(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return self._device
        if not isinstance(value, Operand):
            return value
        if value.static:
            return self._tensor(value)
        if id(value) not in self._activations:
            self._activations[id(value)] = self._tensor(value)
        return self._activations[id(value)]

    def _tensor(self, operand: Operand) -> Tensor:
        """Return an operand: ones if it is changed in place again and again (it must not vanish), else random."""
        sizes = operand.sizes_in_memory(self._units)
        if not operand.dtype.is_floating_point:
            return operand.view(torch.zeros(sizes, dtype=operand.dtype, device=self._device), self._units)
        if self._in_place or math.prod(sizes) * operand.dtype.itemsize > _COLD_BYTES:
            return operand.view(torch.ones(sizes, dtype=operand.dtype, device=self._device), self._units)
        return operand.view(self._piece(operand.dtype, math.prod(sizes)).view(sizes), self._units)

    def _piece(self, dtype: torch.dtype, length: int) -> Tensor:
        """Return the next numbers in memory."""
        if dtype not in self._memory:
            size = _COLD_BYTES // dtype.itemsize
            self._memory[dtype] = torch.empty(size, dtype=dtype, device=self._device).uniform_(0.5, 1.5)
        memory = self._memory[dtype]
        start = self._offset if self._offset + length <= len(memory) else 0
        self._offset = start + math.ceil(length / 64) * 64
        return memory[start : start + length]


def _groups(operator: Operator, units: Units, groups: int) -> int:
    """Return the groups of a convolution, whole ones of which are removed."""
    if not isinstance(operator.args[1], Operand):  # it has no weight, as a shuffle of channels
        return groups
    channels = operator.args[0].shape
    now, full = at(channels, units), at(channels, operator.full)
    axis = len(now) - len(operator.args[1].shape) + 1
    if now[axis] * groups % full[axis]:
        raise ValueError(f"{now[axis]} channels are no whole number of groups")
    return now[axis] * groups // full[axis]


def _normalized_shape(operator: Operator, units: Units, shape: Sequence[int]) -> list[int]:
    """Return the last sizes of the tensor that is normalised."""
    return list(at(operator.args[0].shape, units)[-len(shape) :])


_FOLLOWING: dict[str, Callable[[Operator, Units, Any], Any]] = {
    "groups": _groups,
    "normalized_shape": _normalized_shape,
}
"""Integer arguments that follow the shapes of tensors, by name."""


def _shapes(results: Any) -> Iterator[tuple[int, ...]]:
    for result in results if isinstance(results, (tuple, list)) else (results,):
        yield tuple(result.shape) if isinstance(result, Tensor) else ()


def _fits(units: Units, shape: tuple[Any, ...], actual: tuple[int, ...]) -> bool:
    """Whether a result has the predicted shape, as far as that is known."""
    predicted = [None if size is None else at((size,), units)[0] for size in shape]
    return len(predicted) == len(actual) and all(p in (None, a) for p, a in zip(predicted, actual, strict=True))
