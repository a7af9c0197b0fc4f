"""Run a network on fake tensors, and hand every operator that it calls to a function."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.isolation import Snapshot, Write, untouched, written
from lightning_taylor_prune.tracing.progress import tick
from lightning_taylor_prune.tracing.recorder import OnCall, Recorder, Trace

_TORCH_DIR = os.path.dirname(torch.__file__) + os.sep

_PACKAGE_DIR = os.path.dirname(os.path.dirname(__file__)) + os.sep


def run(root: nn.Module, recorded: Trace, tensors: Mapping[str, Tensor], on_call: OnCall) -> tuple[Any, list[Any]]:
    """Run the call of a trace with other (fake) parameters, and hand every operator to ``on_call``.

    Returns:
        The result, and the values that the forward pass stored in attributes of its modules.
    """
    return PreparedRun(root, recorded, Snapshot(root)).run(tensors, on_call)


class PreparedRun:
    """The call of a trace, to be run several times. It holds no fake tensors: those of a run are to be found again.

    Args:
        root: The network; as long as this is used, nothing else may change it.
        recorded: The trace.
        snapshot: The network as it is now.
        changes: What else to replace in modules while it runs.
    """

    def __init__(self, root: nn.Module, recorded: Trace, snapshot: Snapshot, changes: Sequence[Write] = ()) -> None:
        self._root, self._recorded, self._snapshot = root, recorded, snapshot
        self._module = root.get_submodule(recorded.call.module)
        modules = dict(root.named_modules(remove_duplicate=False))
        self._writes = [*_writes_of_state(modules, recorded.training), *changes]
        self._tables = dict(_tables_of_tensors(modules, recorded))

    def run(
        self, tensors: Mapping[str, Tensor], on_call: OnCall, changes: Sequence[Write] = ()
    ) -> tuple[Any, list[Any]]:
        """Run it once; the network is unchanged afterwards.

        Args:
            tensors: Its (fake) parameters and buffers by qualified name.
            on_call: Runs an operator.
            changes: What else to replace in modules in this run only.

        Returns:
            The result, and the values that the forward pass stored in attributes of its modules.
        """
        call, own = self._recorded.call, [Write(*place, tensors[name]) for name, place in self._tables.items()]
        with (
            untouched(self._snapshot, self._recorded.surroundings) as leaked,
            written([*self._writes, *own, *changes]),
            self._recorded.onlookers.kept_out(self._root),
            _tracing_context(call),
            self._recorded.mode,
            enable_python_dispatcher(),
            Recorder(_ticking(on_call)),
        ):
            # Code that draws random numbers in Python (LayerDrop, say) must take the same path in every run.
            random.seed(0)
            np.random.seed(0)
            result = self._module(*call.args, **dict(call.kwargs))
        return result, leaked


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
    """
    fastpath, synchronised = torch.backends.mha.get_fastpath_enabled(), nn.SyncBatchNorm.forward
    flatten = nn.RNNBase.flatten_parameters
    torch.backends.mha.set_fastpath_enabled(False)
    nn.SyncBatchNorm.forward = _BatchNorm.forward  # type: ignore[method-assign]
    nn.RNNBase.flatten_parameters = lambda self: None  # type: ignore[method-assign]
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.jit.optimized_execution(False))  # type: ignore[attr-defined]
            if call.autocast is not None:
                device, dtype = call.autocast
                stack.enter_context(torch.autocast(device, dtype, cache_enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        nn.SyncBatchNorm.forward = synchronised  # type: ignore[method-assign]
        nn.RNNBase.flatten_parameters = flatten  # type: ignore[method-assign]


def user_line(error: BaseException) -> str:
    """Return ``file:line`` of the innermost traceback entry outside torch and this package."""
    line, tb = "", error.__traceback__
    while tb is not None:
        name = tb.tb_frame.f_code.co_filename
        if not name.startswith((_TORCH_DIR, _PACKAGE_DIR)):
            line = f"{name}:{tb.tb_lineno}"
        tb = tb.tb_next
    return line


def source_line() -> str:
    """Return ``file:line`` of the innermost frame of the network's own code, ``""`` where all of it is torch's."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code is not run.__code__:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH_DIR, _PACKAGE_DIR)):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
