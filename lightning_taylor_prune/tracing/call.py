"""How a network is called in training: its arguments, as shapes without data, and as plain data for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only


@dataclass(frozen=True)
class Call:
    """One way a network is called in training.

    Attributes:
        module: Qualified name of the called module, ``""`` for the network itself.
        args: Positional arguments; tensors in them may be real or fake.
        kwargs: Keyword arguments, likewise.
        autocast: Device type and dtype, if the call is made under autocast.
        piece: The call is one of several that are traced in place of a network that cannot be traced as a whole.
    """

    module: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    autocast: tuple[str, torch.dtype] | None = None
    piece: bool = False


def tree_fake(call: Call, mode: FakeTensorMode) -> Call:
    """Return the call with its tensors replaced by fake ones, so that no memory is held."""

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
    """Return device type and dtype of the autocast region that is active here, if any."""
    for device in ("cuda", "cpu", "mps", "xpu"):
        if torch.is_autocast_enabled(device):
            return device, torch.get_autocast_dtype(device)
    return None


def encode_calls(calls: Sequence[Call], device: torch.device) -> list[dict[str, Any]] | None:
    """Write calls down as plain data, for a checkpoint; ``None`` if their arguments hold other things than that.

    Args:
        calls: The calls.
        device: The network's device; tensors are noted to be there or on the CPU.
    """

    def encode(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            there = leaf.device.type == device.type
            return {_TENSOR: [list(leaf.shape), list(leaf.stride()), leaf.dtype, there, leaf.requires_grad]}
        if leaf is None or isinstance(leaf, (bool, int, float, str, torch.dtype)):
            return leaf
        raise TypeError(f"{type(leaf).__name__} is no plain data")

    try:
        return [
            {
                "module": call.module,
                "args": tree_map(encode, call.args),
                "kwargs": tree_map(encode, dict(call.kwargs)),
                "autocast": None if call.autocast is None else call.autocast[1],
                "piece": call.piece,
            }
            for call in calls
        ]
    except TypeError:
        return None


def decode_calls(encoded: Sequence[dict[str, Any]], device: torch.device) -> list[Call]:
    """Read calls that :func:`encode_calls` wrote, their tensors fake and on the network's device now."""

    def decode(leaf: Any) -> Any:
        if not (isinstance(leaf, dict) and _TENSOR in leaf):
            return leaf
        shape, stride, dtype, there, requires_grad = leaf[_TENSOR]
        where = device if there else torch.device("cpu")
        with mode:
            return torch.empty_strided(shape, stride, dtype=dtype, device=where, requires_grad=requires_grad)

    def is_leaf(value: Any) -> bool:
        return isinstance(value, dict) and _TENSOR in value

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return [
        Call(
            call["module"],
            tuple(tree_map(decode, call["args"], is_leaf=is_leaf)),
            tree_map(decode, call["kwargs"], is_leaf=is_leaf),
            None if call["autocast"] is None else (device.type, call["autocast"]),
            call.get("piece", False),
        )
        for call in encoded
    ]


_TENSOR = "tensor: shape, stride, dtype, on the network's device, requires_grad"
