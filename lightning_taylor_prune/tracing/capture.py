"""Record how a training step calls the modules of a network, and where it uses parameters."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from lightning_taylor_prune.tracing.call import Call, current_autocast, tree_fake
from lightning_taylor_prune.tracing.fakes import FakeMode
from lightning_taylor_prune.tracing.own_hook import OwnHook
from lightning_taylor_prune.tracing.progress import tick
from lightning_taylor_prune.tracing.recorder import in_transform
from lightning_taylor_prune.tracing.tensors import named_tensors

_MOST_SIGNATURES = 8
"""Ways of calling one module that are looked at; a loop over many input sizes needs no more to show what ties."""


class CallRecorder:
    """Records, until closed, every call of every module that has parameters, and which calls use which parameters.

    Of inner calls the arguments' shapes are kept; of the outermost ones the arguments themselves, until
    :meth:`settle`. From then on it only looks out for what it has not seen: other kinds of calls, other modules.

    Args:
        root: The network; names are relative to it.
        target: Name of the only module to look into, or ``None`` for whichever are called first.
        known: What a recorder before has seen, see :attr:`known`: it counts as settled from the start.

    Attributes:
        news: Outermost calls since :meth:`settle` that are of another kind than all before, or ran other modules.
    """

    def __init__(self, root: nn.Module, target: str | None = None, known: Collection[str] | None = None) -> None:
        self.root = root
        self._calls: dict[Any, Call] = {}
        self._outermost: dict[Any, Call] = {}
        self.news: list[Call] = []
        self._known: set[str] = set(known or ())
        self._new: set[str] = set()
        self._current: Call | None = None
        self._settled = known is not None
        self._called_by: dict[str, dict[str, None]] = {}
        self._running: list[str] = []
        self._tensors: dict[int, list[str]] = {}
        self._uses: dict[int, set[tuple[str, ...]]] = {}
        self._noting = contextlib.ExitStack()
        self._noting_outside = contextlib.ExitStack()
        self._handles: list[RemovableHandle] = []
        for name, tensor in named_tensors(root):
            self._tensors.setdefault(id(tensor), []).append(name)
        self._watched = root if target is None else root.get_submodule(target)
        self._place_hooks()

    def _place_hooks(self) -> None:
        watched = {*self._watched.modules()}
        for name, module in self.root.named_modules():
            if module in watched and _takes_hooks(module) and any(True for _ in module.parameters()):
                self._handles.append(module.register_forward_pre_hook(OwnHook(self._pre_hook(name)), with_kwargs=True))
                self._handles.append(module.register_forward_hook(OwnHook(self._post_hook), always_call=True))

    @property
    def calls(self) -> list[Call]:
        """The outermost calls so far, each signature once."""
        return [self._calls[key] for key in self._outermost]

    @property
    def real_calls(self) -> list[Call]:
        """The outermost calls with their tensors as they came."""
        return list(self._outermost.values())

    @property
    def known(self) -> frozenset[str] | None:
        """Kinds of calls and names of modules that were seen until :meth:`settle`; ``None`` before it."""
        return frozenset(self._known) if self._settled else None

    def needs_step(self) -> bool:
        """Whether the calls alone do not show how layers work together: single layers, or uses outside of any call."""
        single = any(_is_single_layer(self.root.get_submodule(call.module)) for call in self.calls if call.module)
        return single or not self.calls or () in {stack for stacks in self._uses.values() for stack in stacks}

    def settle(self, further: Collection[str] = ()) -> None:
        """Keep no arguments any longer; what has been seen so far, here or in a run before, counts as known."""
        self._known |= self._new | set(further)
        self._new = set()
        self._outermost = {key: self._calls[key] for key in self._outermost}
        self.news, self._settled = [], True

    def note_uses_outside(self, method: str) -> None:
        """Note from now on what a method of the network does with parameters while it calls no module."""
        if not self._settled:
            self._noting_outside.enter_context(
                _NoteUses(lambda func, tensor: self._note_use(func, tensor) if _is_running(method, self.root) else None)
            )

    def stop_noting_outside(self) -> None:
        """End what :meth:`note_uses_outside` began."""
        self._noting_outside.close()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing in here: no hook is on the network."""
        self._remove_hooks()
        try:
            yield
        finally:
            self._place_hooks()

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
        self._remove_hooks()
        self._running.clear()
        self._noting.close()
        self._noting_outside.close()

    def _pre_hook(self, name: str) -> Callable[..., None]:
        def pre_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._sees(module):
                self._begin(Call(name, args, kwargs, current_autocast()))

        return pre_hook

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _sees(self, module: nn.Module) -> bool:
        return not (is_redirected(module) or _in_backward() or in_transform())

    def _post_hook(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._running and self._sees(module):
            self._running.pop()
            if not self._running:
                self._noting.close()
                self._current = None

    def _begin(self, call: Call) -> None:
        """Note a call; from an outermost one on, what is done with parameters."""
        tick()
        key = self._record(call)
        if not self._running:
            self._current = _detached(call)
            if key is not None:
                self._outermost.setdefault(key, self._calls[key] if self._settled else self._current)
            if not self._settled:
                self._noting.enter_context(_NoteUses(self._note_use))
            self._note_news(call, _kind_of(call))
        else:
            self._called_by.setdefault(self._running[-1], {})[call.module] = None
            self._note_news(call, call.module)
        self._running.append(call.module)

    def _note_news(self, call: Call, kind: str) -> None:
        """Note the outermost call that is running if this is the first call of its kind, or of a module."""
        is_new = kind not in self._known and kind not in self._new
        self._new.add(kind)
        if is_new and self._settled and self.root.training and all(known is not self._current for known in self.news):
            assert self._current is not None
            self.news.append(self._current)

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

    def _note_use(self, func: Any, tensor: Tensor) -> None:
        if id(tensor) in self._tensors and (self._running or func not in _FOR_ANY_SIZE):
            self._uses.setdefault(id(tensor), set()).add(tuple(self._running))


_ASK_NO_SIZE = frozenset(
    getattr(torch.Tensor, name).__get__ for name in ("device", "dtype", "requires_grad", "is_cuda", "grad", "layout")
)

_FOR_ANY_SIZE = frozenset(
    getattr(holder, name)
    for holder in (torch, torch.Tensor)
    for name in ("abs", "clone", "detach", "mean", "mul", "norm", "numel", "pow", "square", "sum")
) | {torch.Tensor.__pow__, vars(torch._C.TensorBase)["data"].__get__, torch.linalg.vector_norm, torch.linalg.norm}
"""What penalties on weights do, outside of any call: it works at any size of a weight that is used alone."""


class _NoteUses(TorchFunctionMode):
    """Tells of every tensor that a function of torch gets, but for questions to which no size matters."""

    def __init__(self, note: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _ASK_NO_SIZE:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    self._note(func, value)
        return func(*args, **(kwargs or {}))


def _detached(call: Call) -> Call:
    """Return a call whose tensors do not hold the graph that they come from."""
    args, kwargs = tree_map_only(
        Tensor, lambda t: t.detach().requires_grad_(t.requires_grad), (call.args, dict(call.kwargs))
    )
    return replace(call, args=args, kwargs=kwargs)


def _kind_of(call: Call) -> str:
    """Return what tells one way of calling a module from another: all but sizes and numbers."""
    leaves, structure = tree_flatten((call.args, dict(call.kwargs)))
    kinds = (
        x if isinstance(x, (str, bool)) else (x.dim(), x.dtype) if isinstance(x, Tensor) else type(x) for x in leaves
    )
    return repr((call.module, str(structure), tuple(kinds)))


def is_module_name(known: str) -> bool:
    """Whether something known (see :attr:`CallRecorder.known`) is the name of a module, not a kind of calls."""
    return not known.startswith("(")


def _is_running(method: str, root: nn.Module) -> bool:
    """Whether a method of the network is being executed: a strategy uses parameters before and after it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == method and code.co_argcount and frame.f_locals.get(code.co_varnames[0]) is root:
            return True
        frame = frame.f_back
    return False


def _is_single_layer(module: nn.Module) -> bool:
    """Whether a module has parameters of its own only."""
    return not any(True for child in module.children() for _ in child.parameters())


def as_submodule(call: Call) -> Call:
    """Return a call as one of several that are traced in place of the whole network."""
    return replace(call, is_submodule=True)


def is_redirected(module: nn.Module) -> bool:
    """Whether a strategy has put the training step in place of ``forward``: then this is no call of the network.

    A user may put something there too (a compiled or decorated `forward`, a :func:`functools.partial`): it is one.
    """
    forward = vars(module).get("forward")
    return inspect.isfunction(forward) and forward.__qualname__.partition(".")[0] == "_ForwardRedirection"


def _takes_hooks(module: nn.Module) -> bool:
    """Whether hooks can be put on a module: scripted ones refuse them."""
    return not isinstance(module, torch.jit.ScriptModule)


def _in_backward() -> bool:
    """Whether a backward pass is running: then a call only computes again what activation checkpointing dropped."""
    return torch._C._current_graph_task_id() != -1
