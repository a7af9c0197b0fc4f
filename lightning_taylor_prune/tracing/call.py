"""How a network is called in training: its arguments as fake tensors, and as plain data for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from lightning_taylor_prune.tracing.fakes import FakeMode


class MadeTensor(NamedTuple):
    """Shape and type of a tensor that an operator made."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Answer(NamedTuple):
    """What an operator gave for real that fake tensors cannot tell, such as `item` or `nonzero`.

    Attributes:
        position: How many operators ran before it.
        operator: Its name.
        result: What it gave: numbers, arrays, and :class:`MadeTensor` in place of tensors.
    """

    position: int
    operator: str
    result: Any


@dataclass(frozen=True)
class Call:
    """One way a network is called in training.

    Attributes:
        module: Qualified name of the called module, ``""`` for the network itself.
        args: Positional arguments; tensors in them may be real or fake.
        kwargs: Keyword arguments, likewise.
        autocast: Device type and dtype, if the call is made under autocast.
        is_submodule: The network cannot be traced as a whole; this call of a submodule is traced in its place.
        method: Name of the method that is called; ``""`` for the module itself, with its hooks.
        draw: Seed of Python's and NumPy's random generators, where the code draws which way it takes.
        answers: What operators gave that depend on the values of tensors, see :class:`Answer`.
        in_other_mode: All modules are in training mode where the called one is not now, or in evaluation mode where it
            is. Only calls with answers are of one mode; others are traced in both.
    """

    module: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    autocast: tuple[str, torch.dtype] | None = None
    is_submodule: bool = False
    method: str = ""
    draw: int = 0
    answers: tuple[Answer, ...] = ()
    in_other_mode: bool = False

    @property
    def name(self) -> str:
        """What is called, for messages."""
        return ".".join(part for part in (self.module, self.method) if part)


def tree_fake(call: Call, mode: FakeTensorMode) -> Call:
    """Return the call with fake tensors in place of its tensors, so that it holds no memory."""

    def fake(tensor: Tensor) -> Tensor:
        if isinstance(tensor, torch._subclasses.FakeTensor):
            with mode:
                return torch.empty_strided(
                    tensor.shape,
                    tensor.stride(),
                    dtype=tensor.dtype,
                    device=tensor.device,
                    requires_grad=tensor.requires_grad,
                )
        return mode.from_tensor(tensor.detach()).requires_grad_(tensor.requires_grad)

    args, kwargs = tree_map_only(Tensor, fake, (call.args, dict(call.kwargs)))
    return replace(call, args=args, kwargs=kwargs)


def batch_size(call: Call) -> int:
    """Return the length of the first tensor among a call's arguments, which mostly is the batch size."""
    tensors = [leaf for leaf in tree_leaves((call.args, dict(call.kwargs))) if isinstance(leaf, Tensor) and leaf.dim()]
    return max(int(tensors[0].shape[0]), 1) if tensors else 1


def current_autocast() -> tuple[str, torch.dtype] | None:
    """Return device type and dtype of the active autocast region, or ``None`` outside of autocast."""
    for device in ("cuda", "cpu", "mps", "xpu"):
        if torch.is_autocast_enabled(device):
            return device, torch.get_autocast_dtype(device)
    return None


def encode_calls(calls: Sequence[Call], device: torch.device) -> list[dict[str, Any]] | None:
    """Return calls as plain data for a checkpoint, or ``None`` if an argument is neither a tensor nor plain data.

    Args:
        calls: The calls.
        device: The network's device. Every tensor is recorded as being on this device or on the CPU.
    """

    def encode(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            on_device = leaf.device.type == device.type
            return {_TENSOR: [list(leaf.shape), list(leaf.stride()), leaf.dtype, on_device, leaf.requires_grad]}
        if leaf is None or isinstance(leaf, (bool, int, float, str, torch.dtype)):
            return leaf
        raise TypeError(f"{type(leaf).__name__} is not plain data")

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            return {_ARRAY: torch.from_numpy(leaf)}
        return {_MADE: [list(leaf.shape), leaf.dtype]} if isinstance(leaf, MadeTensor) else leaf

    def is_made(value: Any) -> bool:
        return isinstance(value, MadeTensor)

    try:
        return [
            {
                "module": call.module,
                "args": tree_map(encode, call.args),
                "kwargs": tree_map(encode, dict(call.kwargs)),
                "autocast": None if call.autocast is None else call.autocast[1],
                "is_submodule": call.is_submodule,
                "method": call.method,
                "draw": call.draw,
                "answers": [[a.position, a.operator, tree_map(plain, a.result, is_leaf=is_made)] for a in call.answers],
                "in_other_mode": call.in_other_mode,
            }
            for call in calls
        ]
    except TypeError:
        return None


def decode_calls(encoded: Sequence[dict[str, Any]], device: torch.device) -> list[Call]:
    """Return the calls that :func:`encode_calls` encoded, with fake tensors on the network's present device."""

    def decode(leaf: Any) -> Any:
        if not (isinstance(leaf, dict) and _TENSOR in leaf):
            return leaf
        shape, stride, dtype, on_device, requires_grad = leaf[_TENSOR]
        where = device if on_device else torch.device("cpu")
        with mode:
            return torch.empty_strided(shape, stride, dtype=dtype, device=where, requires_grad=requires_grad)

    def made(leaf: Any) -> Any:
        if isinstance(leaf, dict) and _ARRAY in leaf:
            return leaf[_ARRAY].numpy().copy()
        return MadeTensor(tuple(leaf[_MADE][0]), leaf[_MADE][1]) if isinstance(leaf, dict) else leaf

    def is_leaf(value: Any) -> bool:
        return isinstance(value, dict) and not value.keys().isdisjoint((_TENSOR, _MADE, _ARRAY))

    mode = FakeMode()
    return [
        Call(
            call["module"],
            tuple(tree_map(decode, call["args"], is_leaf=is_leaf)),
            tree_map(decode, call["kwargs"], is_leaf=is_leaf),
            None if call["autocast"] is None else (device.type, call["autocast"]),
            call["is_submodule"],
            call["method"],
            call["draw"],
            tuple(Answer(at, name, tree_map(made, result, is_leaf=is_leaf)) for at, name, result in call["answers"]),
            call["in_other_mode"],
        )
        for call in encoded
    ]


_ARRAY = "array"
_MADE = "made tensor: shape, dtype"
_TENSOR = "tensor: shape, stride, dtype, on the network's device, requires_grad"
