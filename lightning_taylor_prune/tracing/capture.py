"""Record how a training step calls the modules of a network."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_flatten

from lightning_taylor_prune.tracing.call import Call, current_autocast, tree_fake


class CallRecorder(ABC):
    """Records, until it is closed, how some modules of a network are called.

    It records the shapes of the arguments, not their values, and so holds no memory.

    Args:
        root: The network; names are relative to it.
        names: Names of the modules to record, or ``None`` for all. Modules without parameters are ignored.
    """

    def __init__(self, root: nn.Module, names: Collection[str] | None) -> None:
        self._calls: dict[tuple[str, Hashable], Call] = {}
        self._handles = []
        for name, module in root.named_modules():
            if (names is None or name in names) and any(True for _ in module.parameters()):
                self._handles.append(module.register_forward_pre_hook(self._pre_hook(name), with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._post_hook, always_call=True))

    @abstractmethod
    def on_call(self, call: Call) -> None:
        """Handle the call of a module, before the module runs."""

    @abstractmethod
    def on_return(self) -> None:
        """Handle the end of the call that began last."""

    @property
    def calls(self) -> list[Call]:
        """The recorded calls; of several with the same shapes only the first."""
        return list(self._calls.values())

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _pre_hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def pre_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not _is_redirected(module):
                self.on_call(Call(name, args, kwargs, current_autocast()))

        return pre_hook

    def _post_hook(self, module: nn.Module, args: Any, output: Any) -> None:
        if not _is_redirected(module):
            self.on_return()

    def record(self, call: Call) -> None:
        """Record a call, unless one of the same module with the same shapes is recorded already."""
        values, structure = tree_flatten((call.args, dict(call.kwargs)))
        signature = tuple((tuple(x.shape), x.dtype) if isinstance(x, Tensor) else repr(x)[:100] for x in values)
        key = call.module, (str(structure), signature)
        if key not in self._calls and sum(k[0] == call.module for k in self._calls) < _MOST_SIGNATURES:
            with torch.no_grad():
                self._calls[key] = tree_fake(call, FakeTensorMode(allow_non_fake_inputs=True))


class OutermostCalls(CallRecorder):
    """Records calls of modules that have parameters, but not the calls that other recorded modules make.

    Args:
        root: The network; names are relative to it.
        target: Name of the only module to record, or ``None`` for the modules that the training step itself calls.
    """

    def __init__(self, root: nn.Module, target: str | None) -> None:
        super().__init__(root, None if target is None else {target})
        self._depth = 0

    def on_call(self, call: Call) -> None:
        """Record the call if no other recorded module is running."""
        if self._depth == 0:
            self.record(call)
        self._depth += 1

    def on_return(self) -> None:
        """Note that one module fewer is running."""
        self._depth = max(self._depth - 1, 0)


_MOST_SIGNATURES = 8
"""How many calls of one module, with different shapes, are recorded; more would show no further ties of channels."""


def _is_redirected(module: nn.Module) -> bool:
    """Whether a strategy has replaced ``forward`` by the training step: then the call is not one of the network."""
    forward = vars(module).get("forward")
    return forward is not None and not inspect.ismethod(forward)
