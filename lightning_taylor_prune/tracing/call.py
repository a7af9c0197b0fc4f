"""How a network is called in training: its arguments as fake tensors, and as plain data for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from lightning_taylor_prune.tracing.fakes import FakeMode


@dataclass(frozen=True)
class Call:
    """One way a network is called in training.

    Attributes:
        module: Qualified name of the called module, ``""`` for the network itself.
        args: Positional arguments; tensors in them may be real or fake.
        kwargs: Keyword arguments, likewise.
        autocast: Device type and dtype, if the call is made under autocast.
        is_submodule: The network cannot be traced as a whole; this call of a submodule is traced in its place.
    """

    module: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    autocast: tuple[str, torch.dtype] | None = None
    is_submodule: bool = False


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

    try:
        return [
            {
                "module": call.module,
                "args": tree_map(encode, call.args),
                "kwargs": tree_map(encode, dict(call.kwargs)),
                "autocast": None if call.autocast is None else call.autocast[1],
                "is_submodule": call.is_submodule,
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

    def is_leaf(value: Any) -> bool:
        return isinstance(value, dict) and _TENSOR in value

    mode = FakeMode()
    return [
        Call(
            call["module"],
            tuple(tree_map(decode, call["args"], is_leaf=is_leaf)),
            tree_map(decode, call["kwargs"], is_leaf=is_leaf),
            None if call["autocast"] is None else (device.type, call["autocast"]),
            call["is_submodule"],
        )
        for call in encoded
    ]


_TENSOR = "tensor: shape, stride, dtype, on the network's device, requires_grad"
