"""Find out how a training step calls its network, by watching one batch."""

from __future__ import annotations

import base64
import inspect
import io
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_map

from lightning_taylor_prune.trace import Call, current_autocast, tree_fake

_MOST_SIGNATURES = 8
"""Ways of calling one module that are looked at; a loop over many input sizes needs no more to show what ties."""


class ModuleWatch(ABC):
    """Sees, until closed, every call of some modules, and keeps how they are called.

    What is kept are the arguments' shapes, not their values: no memory is held.

    Args:
        root: The network; names are relative to it.
        names: Names of the modules to watch, or ``None`` for all; those without parameters are passed over.
    """

    def __init__(self, root: nn.Module, names: Collection[str] | None) -> None:
        self._calls: dict[Any, Call] = {}
        self._handles = []
        for name, module in root.named_modules():
            if (names is None or name in names) and any(True for _ in module.parameters()):
                self._handles.append(module.register_forward_pre_hook(self._pre_hook(name), with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._post_hook, always_call=True))

    @abstractmethod
    def on_call(self, call: Call) -> None:
        """A module is called."""

    @abstractmethod
    def on_return(self) -> None:
        """The call that began last is over."""

    @property
    def calls(self) -> list[Call]:
        """The calls so far, each signature once."""
        return list(self._calls.values())

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _pre_hook(self, name: str) -> Any:
        def pre_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not _is_redirected(module):
                self.on_call(Call(name, args, kwargs, current_autocast()))

        return pre_hook

    def _post_hook(self, module: nn.Module, args: Any, output: Any) -> None:
        if not _is_redirected(module):
            self.on_return()

    def record(self, call: Call) -> None:
        """Keep a call if none like it is there."""
        leaves, structure = tree_flatten((call.args, dict(call.kwargs)))
        signature = tuple((tuple(x.shape), x.dtype) if isinstance(x, Tensor) else repr(x)[:100] for x in leaves)
        key = (call.module, str(structure), signature)
        if key not in self._calls and sum(k[0] == call.module for k in self._calls) < _MOST_SIGNATURES:
            with torch.no_grad():
                self._calls[key] = tree_fake(call, FakeTensorMode(allow_non_fake_inputs=True))


class CallCapture(ModuleWatch):
    """Records, until closed, every outermost call of a module that has parameters.

    Args:
        root: The network; names are relative to it.
        target: Name of the only module to watch, or ``None`` for whichever are called first.
    """

    def __init__(self, root: nn.Module, target: str | None) -> None:
        super().__init__(root, None if target is None else {target})
        self._depth = 0

    def on_call(self, call: Call) -> None:
        """Keep the call if it is an outermost one."""
        if self._depth == 0:
            self.record(call)
        self._depth += 1

    def on_return(self) -> None:
        """Go up by one level."""
        self._depth = max(self._depth - 1, 0)


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


def to_text(content: Any) -> str:
    """Write what a checkpoint may hold as text, for a message to other ranks."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def from_text(text: str) -> Any:
    """Read what :func:`to_text` wrote."""
    return torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)


_TENSOR = "tensor: shape, stride, dtype, on the network's device, requires_grad"


def _is_redirected(module: nn.Module) -> bool:
    """Whether a strategy has put the training step in place of ``forward``: then this is no call of the network."""
    forward = vars(module).get("forward")
    return forward is not None and not inspect.ismethod(forward)
