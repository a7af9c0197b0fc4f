"""Run a network on fake tensors, and hand every operator that it calls to a function."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from lightning_taylor_prune.tracing.arrays import READ_ARRAY
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.isolation import Snapshot, Stored, Write, buffers_kept, untouched, written
from lightning_taylor_prune.tracing.observers import writes_for_observers
from lightning_taylor_prune.tracing.progress import tick
from lightning_taylor_prune.tracing.recorder import OnCall, Recorder, Trace

_NOT_THE_USERS = tuple(
    os.path.dirname(file) + os.sep for file in (torch.__file__, np.__file__, os.path.dirname(__file__))
)
"""Folders of code that no line of is named: torch's, NumPy's and ours."""


def run(root: nn.Module, recorded: Trace, tensors: Mapping[str, Tensor], on_call: OnCall) -> tuple[Any, list[Stored]]:
    """Run the call of a trace with other (fake) parameters, and hand every operator to ``on_call``.

    Returns:
        The result, and the values that the forward pass stored in attributes of its modules or around them.
    """
    return PreparedRun(root, recorded, Snapshot(root)).run(tensors, on_call)


class PreparedRun:
    """The call of a trace, to be run several times. It holds no fake tensors: those of a run are to be found again.

    Args:
        root: The network; as long as this is used, nothing else may change it.
        recorded: The trace.
        snapshot: The network as it is now.
        changes: What else to replace in modules while it runs.

    Attributes:
        has_drawn: The last run drew random numbers in Python or NumPy, and may take another path with others.
    """

    def __init__(self, root: nn.Module, recorded: Trace, snapshot: Snapshot, changes: Sequence[Write] = ()) -> None:
        self.has_drawn = False
        self._root, self._recorded, self._snapshot = root, recorded, snapshot
        self._module = root.get_submodule(recorded.call.module)
        modules = dict(root.named_modules(remove_duplicate=False))
        self._writes = [*_writes_of_state(modules, recorded.training), *changes]
        self._tables = dict(_tables_of_tensors(modules, recorded))

    def run(
        self, tensors: Mapping[str, Tensor], on_call: OnCall, changes: Sequence[Write] = ()
    ) -> tuple[Any, list[Stored]]:
        """Run it once; the network is unchanged afterwards.

        Args:
            tensors: Its (fake) parameters and buffers by qualified name.
            on_call: Runs an operator.
            changes: What else to replace in modules in this run only.

        Returns:
            The result (of a method: with those of the ``forward`` that it calls), and the values that the forward pass
            stored in attributes of its modules or around them.
        """
        own = [Write(*place, tensors[name]) for name, place in self._tables.items()]
        return self._run(self._recorded.call, [*own, *changes], on_call, self._recorded.mode)

    def run_for_real(self, call: Call, on_call: OnCall) -> None:
        """Run a call with real tensors, those of the network included; all of them are unchanged afterwards."""
        with buffers_kept(self._root), AsFakesDo(on_call), torch.random.fork_rng():
            torch.manual_seed(call.draw)
            self._run(call, (), on_call, contextlib.nullcontext())

    def _run(
        self, call: Call, writes: Sequence[Write], on_call: OnCall, mode: AbstractContextManager[Any]
    ) -> tuple[Any, list[Stored]]:
        outputs: list[Any] = []
        with (
            untouched(self._snapshot, self._recorded.surroundings) as leaked,
            written([*self._writes, *writes]),
            self._recorded.onlookers.kept_out(self._root),
            _forward_noted(self._module if call.method else None, outputs),
            _tracing_context(call),
            mode,
            enable_python_dispatcher(),
            Recorder(_ticking(on_call)),
        ):
            seeded = _seed(call.draw)
            result = call_network(getattr(self._module, call.method) if call.method else self._module, call)
            self.has_drawn = seeded != _states()
        return (result, outputs) if call.method else result, leaked


def call_network(network: Callable[..., Any], call: Call) -> Any:
    """Call a network, or a method of it; all code below this frame is the network's, see :func:`source_line`."""
    return network(*call.args, **call.kwargs)


def _seed(draw: int) -> Any:
    """Seed the random generators: code that draws its path (LayerDrop, say) must take the same one in every run."""
    random.seed(draw)
    np.random.seed(draw)
    return _states()


def _states() -> Any:
    """Return the states of the random generators of Python and NumPy, to be compared."""
    of_numpy: Any = np.random.get_state()
    return random.getstate(), of_numpy[1].tobytes(), of_numpy[2:]


@contextlib.contextmanager
def _forward_noted(module: nn.Module | None, outputs: list[Any]) -> Iterator[None]:
    """Note what a module's ``forward`` returns where one of its methods calls it: that is an output of the network."""
    if module is None:
        yield
        return
    before, forward = vars(module).get("forward"), module.forward

    @functools.wraps(forward)
    def noted(*args: Any, **kwargs: Any) -> Any:
        outputs.append(result := forward(*args, **kwargs))
        return result

    vars(module)["forward"] = noted
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


class AsFakesDo(TorchFunctionMode):
    """Makes `tolist` of real tensors ask for one number after the other, and notes `numpy`, as with fake tensors.

    Args:
        on_call: Notes an operator.
    """

    def __init__(self, on_call: OnCall) -> None:
        super().__init__()
        self._on_call = on_call

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, or else that of fake tensors."""
        if func is Tensor.numpy:
            return self._on_call(READ_ARRAY, tuple(args), kwargs or {}).copy()
        if func is Tensor.__array__:
            return self._on_call(READ_ARRAY, (args[0],), {}).astype(args[1] if len(args) > 1 else None)
        if func is Tensor.tolist:
            with self:  # lists of lists, too
                return FakeTensor.tolist(args[0])
        return func(*args, **(kwargs or {}))


def _ticking(on_call: OnCall) -> OnCall:
    def call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tick()
        return on_call(func, args, kwargs)

    return call


def _writes_of_state(modules: Mapping[str, nn.Module], training: Mapping[str, bool]) -> Iterator[Write]:
    """Yield what sets the training flags of modules and removes their backward hooks.

    These would add operators to the forward pass that have nothing to do with channels.
    """
    for name, flag in training.items():
        module = modules[name]
        if module.training != flag:
            yield Write.of_attribute(module, "training", flag)
        for hooks in ("_backward_hooks", "_backward_pre_hooks"):
            if module.__dict__.get(hooks):
                yield Write(module.__dict__, hooks, OrderedDict())


def _tables_of_tensors(
    modules: Mapping[str, nn.Module], recorded: Trace
) -> Iterator[tuple[str, tuple[dict[str, Any], str]]]:
    """Yield the parameters and buffers of the called module by name, each with its table and its name there."""
    prefix = f"{recorded.call.module}." if recorded.call.module else ""
    for name in recorded.tensors:
        if name.startswith(prefix):
            owner, _, leaf = name.rpartition(".")
            module = modules[owner]
            yield name, (module._parameters if leaf in module._parameters else module._buffers, leaf)


@contextlib.contextmanager
def _tracing_context(call: Call) -> Iterator[None]:
    """Set what decides which operators run: grad mode on, the attention fast path off, autocast as in training.

    ``SyncBatchNorm`` runs as ordinary batch normalisation, so that tracing sends no messages to other ranks.
    Recurrent layers do not put their weights into one block of memory: fake tensors have none.
    Scripted modules run as they are written: what optimises them changes their operators after a few runs.
    Compiled parts run as they are written, too, and observers of quantisation without values. What code prints it has
    printed, or will print, when it really runs.
    """
    fastpath, synchronised = torch.backends.mha.get_fastpath_enabled(), nn.SyncBatchNorm.forward
    flatten = nn.RNNBase.flatten_parameters
    torch.backends.mha.set_fastpath_enabled(False)
    nn.SyncBatchNorm.forward = _BatchNorm.forward  # type: ignore[method-assign]
    nn.RNNBase.flatten_parameters = lambda self: None  # type: ignore[method-assign]
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(contextlib.redirect_stdout(_Nowhere()))
            stack.enter_context(written([*writes_for_observers()]))
            stack.enter_context(uncompiled())
            stack.enter_context(torch.jit.optimized_execution(False))  # type: ignore[attr-defined]
            if call.autocast is not None:
                device, dtype = call.autocast
                stack.enter_context(torch.autocast(device, dtype, cache_enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        nn.SyncBatchNorm.forward = synchronised  # type: ignore[method-assign]
        nn.RNNBase.flatten_parameters = flatten  # type: ignore[method-assign]


class _Nowhere(io.TextIOBase):
    """Takes text and keeps none of it."""

    def write(self, text: str) -> int:
        """Do nothing."""
        return len(text)


def uncompiled() -> contextlib.AbstractContextManager[object]:
    """Run compiled code as it is written. To load dynamo takes seconds; where it is not loaded nothing is compiled."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def user_line(error: BaseException) -> str:
    """Return ``file:line`` of the innermost traceback entry outside torch, NumPy and this package."""
    line, tb = "", error.__traceback__
    while tb is not None:
        name = tb.tb_frame.f_code.co_filename
        if not name.startswith(_NOT_THE_USERS):
            line = f"{name}:{tb.tb_lineno}"
        tb = tb.tb_next
    return line


def source_line() -> str:
    """Return ``file:line`` of the innermost frame of the network's own code, ``""`` where all of it is torch's."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code is not call_network.__code__:
        name = frame.f_code.co_filename
        if not name.startswith(_NOT_THE_USERS):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
