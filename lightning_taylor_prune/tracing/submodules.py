"""For networks that cannot be traced as a whole: which submodules can be traced, and how they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_taylor_prune.errors import TraceError
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.capture import CallRecorder
from lightning_taylor_prune.tracing.graph import trace
from lightning_taylor_prune.tracing.isolation import untouched
from lightning_taylor_prune.tracing.tensors import named_tensors


@dataclass(frozen=True)
class TraceableSubmodules:
    """The submodules of a network that can be traced.

    Attributes:
        calls: How these submodules are called, in the order of their first calls.
        fixed: Names of the parameters and buffers that are also used outside of these calls, and so keep their shapes.
    """

    calls: tuple[Call, ...]
    fixed: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the submodules."""
        return tuple(dict.fromkeys(call.module for call in self.calls))

    def describe(self, reason: str) -> str:
        """Return a warning that only these submodules can be pruned, and why."""
        names = ", ".join(f"`{name}`" for name in self.names)
        return f"Only these submodules of the network can be pruned: {names}. The network as a whole: {reason}"


class SubmoduleRecorder(CallRecorder):
    """Records, until it is closed, all calls of modules that have parameters, and which modules use each parameter.

    Args:
        root: The network; names are relative to it.
        target: Name of the module to record with its submodules, or ``None`` for all modules.
    """

    def __init__(self, root: nn.Module, target: str | None = None) -> None:
        super().__init__(
            root, None if target is None else {target, *_below(target, (n for n, _ in root.named_modules()))}
        )
        self._root = root
        self._running: list[str] = []
        self._outermost: dict[str, None] = {}
        self._tensors: dict[int, list[str]] = {}
        for name, tensor in named_tensors(root):
            self._tensors.setdefault(id(tensor), []).append(name)
        self._uses: dict[int, set[tuple[str, ...]]] = {}
        self._mode = _Uses(self._note_use)

    def on_call(self, call: Call) -> None:
        """Record a call. While modules run, every use of a parameter is recorded too."""
        if not self._running:
            self._outermost[call.module] = None
            self._mode.__enter__()  # type: ignore[no-untyped-call]
        self._running.append(call.module)
        self.record(call)

    def on_return(self) -> None:
        """Note that the module called last has returned."""
        if self._running:
            self._running.pop()
            if not self._running:
                self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _note_use(self, tensor: Tensor) -> None:
        if id(tensor) in self._tensors:
            self._uses.setdefault(id(tensor), set()).add(tuple(self._running))

    def traceable(self) -> TraceableSubmodules:
        """Return the largest submodules of which every recorded call can be traced."""
        calls = tuple(
            replace(call, is_submodule=True)
            for name in self._outermost
            for call in self._traceable(name, with_itself=False)
        )
        names = {call.module for call in calls}
        outside = [
            self._tensors[number]
            for number, stacks in self._uses.items()
            if any(names.isdisjoint(stack) for stack in stacks)
        ]
        return TraceableSubmodules(calls, tuple(name for same in outside for name in same))

    def _traceable(self, name: str, with_itself: bool = True) -> Iterator[Call]:
        own = [call for call in self.calls if call.module == name]
        if with_itself and all(_can_be_traced(self._root, call) for call in own):
            yield from own
            return
        called = list(dict.fromkeys(call.module for call in self.calls))
        for child in _nearest(_below(name, called)):
            yield from self._traceable(child)


def submodules_of_call(root: nn.Module, call: Call) -> TraceableSubmodules:
    """Run a call with real values and find the submodules that can be traced; the network is unchanged afterwards.

    Returns:
        The submodules; none if the network does not run, or no submodule can be traced.
    """
    recorder = SubmoduleRecorder(root)
    try:
        run_for_real(root, call)
    except Exception:  # the caller reports why the network could not be traced, which the user has to know first
        return TraceableSubmodules((), ())
    finally:
        recorder.close()
    return recorder.traceable()


def run_for_real(root: nn.Module, call: Call, training: bool | None = None) -> None:
    """Run a call with its real values, without gradients; network and arguments are unchanged afterwards.

    Args:
        root: The network.
        call: Which module is called and with what.
        training: Training flag of all modules; by default the present ones.
    """
    buffers = [(buffer, buffer.clone()) for buffer in root.buffers()]
    args, kwargs = tree_map_only(Tensor, torch.clone, (call.args, dict(call.kwargs)))
    try:
        with untouched(root), torch.no_grad():
            for module in root.modules() if training is not None else ():
                module.training = bool(training)
            root.get_submodule(call.module)(*args, **kwargs)
    finally:
        with torch.no_grad():
            for buffer, content in buffers:
                buffer.copy_(content)


def _can_be_traced(root: nn.Module, call: Call) -> bool:
    try:
        trace(root, call)
    except TraceError:
        return False
    return True


def _below(name: str, names: Iterable[str]) -> list[str]:
    """Return the names of the modules inside one."""
    return [n for n in names if n and n != name and (not name or n.startswith(f"{name}."))]


def _nearest(names: Sequence[str]) -> list[str]:
    """Return the names that lie inside none of the others."""
    return [n for n in names if not any(n.startswith(f"{other}.") for other in names)]


_READ_NO_SIZE = frozenset(
    getattr(torch.Tensor, name).__get__ for name in ("device", "dtype", "requires_grad", "is_cuda", "grad", "layout")
)


class _Uses(TorchFunctionMode):
    """Calls a function on every tensor that a torch function gets, unless it only reads a dtype or the like."""

    def __init__(self, note: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _READ_NO_SIZE:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    self._note(value)
        return func(*args, **(kwargs or {}))
