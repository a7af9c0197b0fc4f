"""Record how a training step calls the modules of a network, and where it uses parameters."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves

from lightning_taylor_prune.tracing.call import Call, current_autocast, tree_fake
from lightning_taylor_prune.tracing.fakes import FakeMode
from lightning_taylor_prune.tracing.own_hook import OwnHook
from lightning_taylor_prune.tracing.progress import tick
from lightning_taylor_prune.tracing.tensors import named_tensors

_MOST_SIGNATURES = 8
"""Ways of calling one module that are looked at; a loop over many input sizes needs no more to show what ties."""


class CallRecorder:
    """Records, until closed, every call of every module that has parameters, and which calls use which parameters.

    What is kept are the arguments' shapes, not their values: no memory is held.

    Args:
        root: The network; names are relative to it.
        target: Name of the only module to look into, or ``None`` for whichever are called first.
    """

    def __init__(self, root: nn.Module, target: str | None = None) -> None:
        self.root = root
        self._calls: dict[Any, Call] = {}
        self._outermost: dict[Any, None] = {}
        self._called_by: dict[str, dict[str, None]] = {}
        self._running: list[str] = []
        self._tensors: dict[int, list[str]] = {}
        self._uses: dict[int, set[tuple[str, ...]]] = {}
        self._noting = contextlib.ExitStack()
        self._handles = []
        for name, tensor in named_tensors(root):
            self._tensors.setdefault(id(tensor), []).append(name)
        watched = {*(root if target is None else root.get_submodule(target)).modules()}
        for name, module in root.named_modules():
            if module in watched and _takes_hooks(module) and any(True for _ in module.parameters()):
                self._handles.append(module.register_forward_pre_hook(OwnHook(self._pre_hook(name)), with_kwargs=True))
                self._handles.append(module.register_forward_hook(OwnHook(self._post_hook), always_call=True))

    @property
    def calls(self) -> list[Call]:
        """The outermost calls so far, each signature once."""
        return [self._calls[key] for key in self._outermost]

    def calls_of(self, module: str) -> list[Call]:
        """The calls of one module so far, each signature once."""
        return [call for call in self._calls.values() if call.module == module]

    def called_by(self, module: str) -> list[str]:
        """Names of the modules that one called itself, in the order of their first calls."""
        return list(self._called_by.get(module, ()))

    def used_outside(self, modules: Iterable[str]) -> tuple[str, ...]:
        """Return names of the parameters and buffers that were also used while none of some modules was running."""
        names = set(modules)
        found = [
            self._tensors[number]
            for number, stacks in self._uses.items()
            if any(names.isdisjoint(stack) for stack in stacks)
        ]
        return tuple(name for same in found for name in same)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        if self._running:
            self._running.clear()
            self._noting.close()

    def _pre_hook(self, name: str) -> Callable[..., None]:
        def pre_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not _is_redirected(module) and not _in_backward():
                self._begin(Call(name, args, kwargs, current_autocast()))

        return pre_hook

    def _post_hook(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._running and not _is_redirected(module) and not _in_backward():
            self._running.pop()
            if not self._running:
                self._noting.close()

    def _begin(self, call: Call) -> None:
        """Note a call; from an outermost one on, what is done with parameters."""
        tick()
        key = self._record(call)
        if not self._running:
            if key is not None:
                self._outermost[key] = None
            self._noting.enter_context(_NoteUses(self._note_use))
        else:
            self._called_by.setdefault(self._running[-1], {})[call.module] = None
        self._running.append(call.module)

    def _record(self, call: Call) -> Any:
        """Keep a call if none like it is there, and return its key; ``None`` where there are too many already."""
        leaves, structure = tree_flatten((call.args, dict(call.kwargs)))
        signature = tuple((tuple(x.shape), x.dtype) if isinstance(x, Tensor) else repr(x)[:100] for x in leaves)
        key = (call.module, str(structure), signature)
        if key not in self._calls:
            if len(self.calls_of(call.module)) >= _MOST_SIGNATURES:
                return None
            with torch.no_grad():
                self._calls[key] = tree_fake(call, FakeMode())
        return key

    def _note_use(self, tensor: Tensor) -> None:
        if id(tensor) in self._tensors:
            self._uses.setdefault(id(tensor), set()).add(tuple(self._running))


_ASK_NO_SIZE = frozenset(
    getattr(torch.Tensor, name).__get__ for name in ("device", "dtype", "requires_grad", "is_cuda", "grad", "layout")
)


class _NoteUses(TorchFunctionMode):
    """Tells of every tensor that a function of torch gets, but for questions to which no size matters."""

    def __init__(self, note: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _ASK_NO_SIZE:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    self._note(value)
        return func(*args, **(kwargs or {}))


def as_submodule(call: Call) -> Call:
    """Return a call as one of several that are traced in place of the whole network."""
    return replace(call, is_submodule=True)


def _is_redirected(module: nn.Module) -> bool:
    """Whether a strategy has put the training step in place of ``forward``: then this is no call of the network."""
    forward = vars(module).get("forward")
    return forward is not None and not inspect.ismethod(forward)


def _takes_hooks(module: nn.Module) -> bool:
    """Whether hooks can be put on a module: scripted ones refuse them."""
    return not isinstance(module, torch.jit.ScriptModule)


def _in_backward() -> bool:
    """Whether a backward pass is running: then a call only computes again what activation checkpointing dropped."""
    return torch._C._current_graph_task_id() != -1
