"""What operators gave on fake tensors, so that an equal call need not be worked out again: torch takes its time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils._mode_utils import no_dispatch

RunOperator = Callable[[Any, Any, Any], Any]


class ResultsByShape:
    """Results of operators, by all that they can depend on: operator, layouts, types, numbers, modes.

    A result is made again as a tensor of the same layout, in new memory or in that of the same operand. Nothing is
    stored of operators that change an operand, nor of tensors with values.

    Args:
        usable: Whether to store and use anything.

    Attributes:
        usable: The same.
        backward_asked: The network's code asked for gradients of such a result, which it does not have.
    """

    def __init__(self, usable: bool = True) -> None:
        self.usable, self.backward_asked = usable, False
        self._known: dict[Hashable, _Results | None] = {}

    def of(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], run: RunOperator) -> Any:
        """Return the result of an operator, like that of an equal call before, or else what ``run`` gives."""
        operands: list[FakeTensor] = []
        key = _key(func, args, kwargs, operands) if self.usable and _only_gives_tensors(func) else None
        known = self._known.get(key) if key is not None else None
        if known is not None:
            return self._again(known, operands)
        result = run(func, args, kwargs)
        if key is not None and key not in self._known:
            self._known[key] = _describe(result, operands)
        return result

    def _again(self, known: _Results, operands: Sequence[FakeTensor]) -> Any:
        def make() -> tuple[FakeTensor, ...]:
            with no_dispatch():
                return tuple(_tensor_of(layout, operands) for layout in known.layouts)

        if known.same_as is not None:
            return operands[known.same_as]
        made: tuple[Tensor, ...] = (
            make() if known.differentiable is None else _differentiable(known, operands, make, self)
        )
        return made[0] if known.container is None else known.container(made)

    def give_up(self) -> bool:
        """Use nothing any more if gradients were asked for; says whether what was run must be run again."""
        again = self.usable and self.backward_asked
        self.usable = self.usable and not again
        return again


class _Layout(NamedTuple):
    """How a result lies in memory, and in that of which operand (its number), if it is a view."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    operand: int | None


class _Results(NamedTuple):
    """The results of an operator.

    Attributes:
        layouts: Of each of them.
        container: What they are returned in, if there are several.
        differentiable: Which of them need gradients; ``None`` if none does.
        same_as: Number of the operand that is the result.
    """

    layouts: tuple[_Layout, ...] = ()
    container: type | None = None
    differentiable: tuple[bool, ...] | None = None
    same_as: int | None = None


def _describe(result: Any, operands: Sequence[FakeTensor]) -> _Results | None:
    """Describe the results of an operator; ``None`` if new tensors cannot stand for them."""
    same = [number for number, operand in enumerate(operands) if operand is result]
    if same:
        return _Results(same_as=same[0])
    container = type(result) if type(result) in (list, tuple) else None
    results = (result,) if container is None else result
    if not results or not all(map(_is_plain, results)) or any(t.requires_grad and t.is_leaf for t in results):
        return None
    numbers = {_storage(operand): number for number, operand in reversed([*enumerate(operands)])}
    places = [numbers.get(_storage(t)) for t in results]
    own = [t for t, number in zip(results, places, strict=True) if number is None]
    views = [(t, operands[n]) for t, n in zip(results, places, strict=True) if n is not None]
    if len({_storage(t) for t in own}) < len(own) or any(t.storage_offset() for t in own):
        return None
    if not all(
        operand.requires_grad for _, operand in views
    ):  # it would need gradients once something is written to it
        return None
    layouts = (
        _Layout(tuple(t.shape), t.stride(), t.storage_offset(), t.dtype, t.device, number)
        for t, number in zip(results, places, strict=True)
    )
    needed = tuple(t.requires_grad for t in results)
    return _Results(tuple(layouts), container, needed if any(needed) else None)


def _tensor_of(layout: _Layout, operands: Sequence[FakeTensor]) -> FakeTensor:
    if layout.operand is None:
        data = torch.empty_strided(layout.shape, layout.strides, dtype=layout.dtype, device="meta")
    else:
        memory = operands[layout.operand].untyped_storage()
        data = torch.empty(0, dtype=layout.dtype, device="meta")
        data.set_(memory, layout.offset, layout.shape, layout.strides)
    return FakeTensor(operands[0].fake_mode, data, layout.device)


def _differentiable(
    known: _Results, operands: Sequence[FakeTensor], make: Callable[[], tuple[FakeTensor, ...]], owner: ResultsByShape
) -> tuple[Tensor, ...]:
    sources = [operand for operand in operands if operand.requires_grad]
    made: tuple[Tensor, ...] = _Computed.apply(make, known.differentiable, owner, *sources)
    return made


class _Computed(torch.autograd.Function):
    """Makes tensors that need gradients because they are computed, as operators check."""

    @staticmethod
    def forward(
        ctx: Any,
        make: Callable[[], tuple[Tensor, ...]],
        needed: Sequence[bool],
        owner: ResultsByShape,
        *sources: Tensor,
    ) -> tuple[Tensor, ...]:
        """Make the tensors."""
        ctx.owner, made = owner, make()
        ctx.mark_non_differentiable(*(t for t, needs in zip(made, needed, strict=True) if not needs))
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Note that these would have been needed.

        Raises:
            RuntimeError: Always.
        """
        ctx.owner.backward_asked = True
        raise RuntimeError("a result that was not computed has no gradients")


def _storage(tensor: Tensor) -> int:
    number: int = tensor.untyped_storage()._cdata
    return number


def _is_plain(value: Any) -> bool:
    return type(value) is FakeTensor and value.constant is None and value.layout == torch.strided


@cache
def _only_gives_tensors(func: Any) -> bool:
    """Whether an operator changes none of its operands, and gives tensors only, of sizes that no values decide."""
    schema = getattr(func, "_schema", None)
    if schema is None or schema.is_mutable or not _BY_VALUES.isdisjoint(func.tags):
        return False
    return all(str(r.type) in _TENSORS for r in schema.returns)


def _key(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], operands: list[FakeTensor]
) -> tuple[Hashable, ...] | None:
    """Return all that the result depends on, and collect the tensors among it; ``None`` if that may be more."""
    parts: list[Hashable] = [func]
    if not all(_add(value, parts, operands) for value in args):
        return None
    for name, value in kwargs.items():
        parts.append(name)
        if not _add(value, parts, operands):
            return None
    if not operands or torch.is_inference_mode_enabled():
        return None
    device = operands[0].device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return (*parts, torch.is_grad_enabled(), torch.get_default_dtype(), autocast)


def _add(value: Any, parts: list[Hashable], operands: list[FakeTensor]) -> bool:
    """Add what is to be known of an argument; says whether that is all."""
    kind = type(value)
    if kind is FakeTensor:
        if not _is_plain(value):
            return False
        operands.append(value)
        layout = tuple(value.shape), value.stride(), value.storage_offset(), value.dtype, value.device
        parts.extend((*layout, value.requires_grad))
        return True
    if kind in (list, tuple, torch.Size):
        parts.extend(("[", len(value)))
        return all(_add(item, parts, operands) for item in value)
    if value is not None and kind not in _PLAIN:
        return False
    parts.append((kind, value))  # True == 1 == 1.0
    return True


_TENSORS = frozenset({"Tensor", "List[Tensor]"})

_BY_VALUES = frozenset({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output})
"""What torch says of operators such as `nonzero`, and `index` by a mask."""

_PLAIN = frozenset({bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format})
