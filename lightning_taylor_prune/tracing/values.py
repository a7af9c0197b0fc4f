"""Values of tensors that do not depend on the input, worked out only where Python asks for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from lightning_taylor_prune.tracing.arrays import READ_ARRAY, without_modes
from lightning_taylor_prune.tracing.call import Answer, MadeTensor
from lightning_taylor_prune.tracing.known_results import ResultsByShape
from lightning_taylor_prune.tracing.packing import call_operator
from lightning_taylor_prune.tracing.tensors import memory_of

NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)


class KnownValues:
    """The operators of a run so far, and what parameters and buffers hold.

    Where an operator needs values (`item`, `nonzero`), the operators that its operands come from are run for real.

    Args:
        mode: The fake tensor mode of the run.
        tensors: Parameters and buffers of the run by name, fake.
        real: Their values by name, on demand; ``None`` where they are not known.
        answers: What operators gave when the call was run for real, for values that depend on the input.
        refused: Operators that are known to run for real only; ``None`` to find out which do.
        by_shape: Results of operators that are known.

    Attributes:
        used: The answers that were needed.
        random: Some of the values that were asked for come from a random generator.
        reads_arrays: Code outside of torch has read what depends on the input.
        refused: Operators whose kernels for fake tensors refused what the real ones take.
    """

    def __init__(
        self,
        mode: FakeTensorMode,
        tensors: Mapping[str, Tensor],
        real: Callable[[str], Tensor | None],
        answers: Sequence[Answer] = (),
        refused: Collection[Any] | None = None,
        by_shape: ResultsByShape | None = None,
    ) -> None:
        self._by_shape = by_shape or ResultsByShape(usable=False)
        self.used: list[Answer] = []
        self.refused = set(refused or ())
        self._finds_out = refused is None
        self.random = self.reads_arrays = False
        self._answers = {(answer.position, answer.operator): answer for answer in answers}
        self._mode = mode
        self._real = real
        self._names = {_storage(tensor): name for name, tensor in tensors.items()}
        self._places = {_storage(tensor): tensor for tensor in tensors.values()}
        self._tape: list[tuple[Any, Any, Any, Any]] = []

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator on fake tensors; where that takes values, on these.

        Raises:
            DataDependentOutputException: The values depend on the input, or on a random generator.
            DynamicOutputShapeException: Likewise.
        """
        try:
            if func is READ_ARRAY:
                raise DataDependentOutputException(func)  # type: ignore[arg-type]
            return self._by_shape.of(func, args, kwargs, call_operator)
        except NEEDS_VALUES as error:
            with without_modes():
                result = self._with_values(func, args, kwargs)
            if result is not _UNKNOWN:
                return tree_map_only(Tensor, self._fake, result) if func not in _INDEXED else func(*result, **kwargs)
            answer = self._answers.get((len(self._tape), str(func)))
            if answer is None:
                raise error
            self.used.append(answer)
            self.reads_arrays |= func is READ_ARRAY
            return made_up((args, kwargs), answer.result)
        except Exception as error:
            if not (self._finds_out or func in self.refused):
                raise
            result = _on_zeros(func, args, kwargs, error)
            self.refused.add(func)
            return result

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Remember that an operator was run."""
        self._tape.append((func, args, kwargs, result))

    def forget(self) -> None:
        """Let go of all tensors."""
        self._tape.clear()
        self._places.clear()

    def _with_values(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func in _INDEXED:
            return self._integer_indices(args)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        value = self._evaluate(tensors)
        if value is None:
            return _UNKNOWN
        return func(*tree_map_only(Tensor, value, args), **tree_map_only(Tensor, value, kwargs))

    def _integer_indices(self, args: Any) -> Any:
        """Return an indexing operator's operands with integers in place of known masks."""
        x = args[0]
        indices: list[Any] = []
        for index in args[1]:
            if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                if (value := self._evaluate([index])) is None:
                    return _UNKNOWN
                indices.extend(map(self._fake, value(index).nonzero().unbind(1)))
            else:
                indices.append(index)
        return (x, indices, *args[2:])

    def _fake(self, tensor: Tensor) -> Tensor:
        return self._mode.from_tensor(tensor.detach())

    def _evaluate(self, tensors: Sequence[Tensor]) -> Callable[[Tensor], Tensor] | None:
        """Run the operators that tensors come from on values; returns how to look tensors up, ``None`` if unknown."""
        needed = self._needed(tensors)
        if needed is None:
            return None
        steps, names, written = needed
        values: dict[Any, Tensor] = {}
        for storage, name in names.items():
            if (real := self._real(name)) is None:
                return None
            values[memory_of(self._places[storage])] = real.detach().clone() if storage in written else real.detach()

        def value(tensor: Tensor) -> Tensor:
            return values[memory_of(tensor)] if isinstance(tensor, FakeTensor) else tensor

        def operand(tensor: Tensor) -> Tensor:
            if isinstance(tensor, FakeTensor) and memory_of(tensor) not in values:
                return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device=tensor.device)
            return value(tensor)

        try:
            for func, args, kwargs, result in steps:
                args, kwargs = tree_map_only(Tensor, operand, (args, kwargs))
                if func is torch.ops.aten.lift_fresh.default:
                    args = tree_map_only(Tensor, torch.clone, args)
                for fake, real in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(fake, Tensor):
                        values[memory_of(fake)] = real
            missing = any(isinstance(t, FakeTensor) and memory_of(t) not in values for t in tensors)
        except Exception:  # what cannot be run for real is not known
            return None
        return None if missing else value

    def _needed(self, tensors: Sequence[Tensor]) -> tuple[list[Any], dict[int, str], set[int]] | None:
        """Find the operators that tensors come from, the parameters and buffers, and what is written to in place."""
        wanted = {_storage(tensor) for tensor in tensors if isinstance(tensor, FakeTensor)}
        made: set[int] = set()
        written: set[int] = set()
        steps = []
        for step in reversed(self._tape):
            func, args, kwargs, result = step
            results = {_storage(t) for t in tree_leaves(result) if isinstance(t, FakeTensor)}
            changed = {_storage(t) for t in _written(func, args) if isinstance(t, FakeTensor)}
            if wanted.isdisjoint(results | changed):
                continue
            if _is_random(func):
                self.random = True
                return None
            operands = set() if _reads_shapes_only(func) else _storages((args, kwargs))
            steps.append(step)
            written |= changed
            made |= results - operands
            wanted |= operands
        unmade = wanted - made
        if not unmade <= self._names.keys():
            return None
        return steps[::-1], {storage: self._names[storage] for storage in unmade}, written


def made_up(args: Any, result: Any) -> Any:
    """Return fake tensors of the shapes and types that an operator gave for real, and the numbers as they are.

    Args:
        args: The operator's arguments: the tensors are on the device of the first of these, and need gradients where
            one of these does.
        result: As in :class:`~lightning_taylor_prune.tracing.call.Answer`.
    """
    operands = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    grad = any(operand.requires_grad for operand in operands) and torch.is_grad_enabled()

    def tensor(spec: MadeTensor) -> Tensor:
        needs_grad = grad and (spec.dtype.is_floating_point or spec.dtype.is_complex)
        empty = torch.empty(spec.shape, dtype=spec.dtype, device=operands[0].device, requires_grad=needs_grad)
        return empty.clone() if needs_grad else empty  # an operator's result is no leaf

    return tree_map(
        lambda leaf: tensor(leaf) if isinstance(leaf, MadeTensor) else leaf,
        result,
        is_leaf=lambda leaf: isinstance(leaf, MadeTensor),
    )


def _on_zeros(func: Any, args: Any, kwargs: Any, error: Exception) -> Any:
    """Return fake results of an operator that runs for real on zeros, but not on fake tensors.

    Raises:
        Exception: ``error``, what it raised on fake tensors, where it does not run for real either.
    """
    schema = getattr(func, "_schema", None)
    if schema is None or any(a.alias_info is not None for a in (*schema.arguments, *schema.returns)):
        raise error
    try:
        with without_modes():
            result = func(*tree_map_only(FakeTensor, _zeros, args), **tree_map_only(FakeTensor, _zeros, kwargs))
    except Exception:  # then it is no fault of the kernel for fake tensors
        raise error from None
    return made_up((args, kwargs), as_answer(result))


def _zeros(fake: FakeTensor) -> Tensor:
    with no_dispatch():
        zeros: Tensor = torch.zeros_like(fake, device=fake.fake_device)
    return zeros


def as_answer(result: Any, shape: tuple[int, ...] | None = None) -> Any:
    """Return what an operator gave as an answer holds it (tensors of another shape, if given): see :func:`made_up`."""
    return tree_map_only(Tensor, lambda t: MadeTensor(tuple(t.shape) if shape is None else shape, t.dtype), result)


def value_of(real: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Callable[[str], Tensor | None]:
    """Return a function from a name to the value of a parameter or buffer, if it has the shape it is run at."""

    def value(name: str) -> Tensor | None:
        return real[name] if real[name].shape == tensors[name].shape else None

    return value


def is_fake(value: object) -> bool:
    """Whether something is a tensor without values."""
    return isinstance(value, FakeTensor)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


def _storages(values: Any) -> set[int]:
    return {_storage(t) for t in tree_leaves(values) if isinstance(t, FakeTensor)}


def _written(func: Any, args: tuple[Any, ...]) -> list[Any]:
    return [args[i] for i in _written_positions(func) if i < len(args)]


@functools.cache
def _written_positions(func: Any) -> tuple[int, ...]:
    arguments = func._schema.arguments if hasattr(func, "_schema") else ()
    return tuple(i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write)


@functools.cache
def _is_random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())


@functools.cache
def _reads_shapes_only(func: Any) -> bool:
    """Whether an operator asks its operand for its shape, type and device only."""
    name: str = func._schema.name.removeprefix("aten::") if hasattr(func, "_schema") else ""
    return name.startswith("new_") or name.rpartition("_")[2] == "like"


_UNKNOWN = object()

_INDEXED = (torch.ops.aten.index.Tensor,)
