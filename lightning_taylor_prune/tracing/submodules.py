"""Networks that cannot be traced as a whole: which of their submodules can be, and how these are called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_taylor_prune.errors import TraceError
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.capture import ModuleWatch
from lightning_taylor_prune.tracing.graph import trace
from lightning_taylor_prune.tracing.isolation import untouched
from lightning_taylor_prune.tracing.tensors import named_tensors


@dataclass(frozen=True)
class TraceableSubmodules:
    """What can be traced of a network.

    Attributes:
        calls: How its traceable parts are called, in the order of their first calls.
        fixed: Names of the parameters and buffers that are also used outside of these calls: they must stay as they
            are.
    """

    calls: tuple[Call, ...]
    fixed: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts."""
        return tuple(dict.fromkeys(call.module for call in self.calls))

    def describe(self, reason: str) -> str:
        """Say that only parts can be pruned, and why."""
        names = ", ".join(f"`{name}`" for name in self.names)
        return f"Only these parts of the network can be pruned: {names}. Of the whole: {reason}"


class PartWatch(ModuleWatch):
    """Records, until closed, every call of every module that has parameters, and where parameters are used.

    Args:
        root: The network; names are relative to it.
        target: Name of the only module to look into, or ``None`` for whichever are called first.
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
        """Note a call; from the outermost one on, what is done with parameters."""
        if not self._running:
            self._outermost[call.module] = None
            self._mode.__enter__()
        self._running.append(call.module)
        self.record(call)

    def on_return(self) -> None:
        """Note that the innermost call is over."""
        if self._running:
            self._running.pop()
            if not self._running:
                self._mode.__exit__(None, None, None)

    def _note_use(self, tensor: Tensor) -> None:
        if id(tensor) in self._tensors:
            self._uses.setdefault(id(tensor), set()).add(tuple(self._running))

    def parts(self) -> TraceableSubmodules:
        """Find the largest parts of which every call seen can be traced."""
        calls = tuple(
            replace(call, piece=True) for name in self._outermost for call in self._traceable(name, with_itself=False)
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


def parts_of_call(root: nn.Module, call: Call) -> TraceableSubmodules:
    """Run a call for real and find the parts of the network that can be traced; the network comes out untouched.

    Returns:
        The parts; none if the network does not run, or no part can be traced.
    """
    watch = PartWatch(root)
    try:
        run_for_real(root, call)
    except Exception:  # then why it could not be traced is what the user has to know
        return TraceableSubmodules((), ())
    finally:
        watch.close()
    return watch.parts()


def run_for_real(root: nn.Module, call: Call, training: bool | None = None) -> None:
    """Run a call with its values, without gradients; network and arguments come out untouched.

    Args:
        root: The network.
        call: Which module is called and with what.
        training: Training flag of all modules; by default as they are.
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


_ASK_NO_SIZE = frozenset(
    getattr(torch.Tensor, name).__get__ for name in ("device", "dtype", "requires_grad", "is_cuda", "grad", "layout")
)


class _Uses(TorchFunctionMode):
    """Tells of every tensor that a function of torch gets, but for questions to which no size matters."""

    def __init__(self, note: Any) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _ASK_NO_SIZE:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    self._note(value)
        return func(*args, **(kwargs or {}))
