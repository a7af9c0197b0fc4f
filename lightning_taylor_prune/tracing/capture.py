"""Record how a training step calls the modules of a network."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_flatten

from lightning_taylor_prune.tracing.call import Call, current_autocast, tree_fake


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


_MOST_SIGNATURES = 8
"""Ways of calling one module that are looked at; a loop over many input sizes needs no more to show what ties."""


def _is_redirected(module: nn.Module) -> bool:
    """Whether a strategy has put the training step in place of ``forward``: then this is no call of the network."""
    forward = vars(module).get("forward")
    return forward is not None and not inspect.ismethod(forward)
