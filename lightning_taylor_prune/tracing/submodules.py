"""Networks that cannot be traced as a whole: which of their submodules can be, and how these are called.

A detector chooses boxes by the values of tensors, which tracing does not have; its backbone and heads do not. Such a
network is recorded while it really runs: how every module is called, and where every parameter is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_taylor_prune.errors import TraceError
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.capture import CallRecorder, as_submodule
from lightning_taylor_prune.tracing.graph import trace
from lightning_taylor_prune.tracing.isolation import buffers_kept, untouched
from lightning_taylor_prune.tracing.progress import note
from lightning_taylor_prune.tracing.runs import uncompiled


@dataclass(frozen=True)
class TraceableSubmodules:
    """What can be traced of a network.

    Attributes:
        calls: How its traceable submodules are called, in the order of their first calls.
        fixed: Names of the parameters and buffers that are also used outside of these calls: they keep their sizes.
    """

    calls: tuple[Call, ...]
    fixed: tuple[str, ...]

    def describe(self, reason: str) -> str:
        """Say that only submodules can be pruned, and why."""
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(call.module for call in self.calls))
        return f"Only these submodules of the network can be pruned: {names}. The whole cannot: {reason}"


def traceable_submodules(recorder: CallRecorder) -> TraceableSubmodules:
    """Find the largest submodules of which every recorded call can be traced."""
    note("looking for submodules that can be traced")
    seen: set[str] = set()
    called = [n for name in dict.fromkeys(call.module for call in recorder.calls) for n in recorder.called_by(name)]
    calls = tuple(as_submodule(c) for name in called for c in _traceable(recorder, name, seen))
    return TraceableSubmodules(calls, recorder.used_outside(call.module for call in calls))


def submodules_of_call(root: nn.Module, call: Call) -> TraceableSubmodules:
    """Run a call for real and find the submodules that can be traced; the network comes out untouched.

    Returns:
        The submodules; none if the network does not run, or no part of it can be traced.
    """
    note("running the network once")
    recorder = CallRecorder(root)
    try:
        run_for_real(root, call)
    except Exception:  # then why it could not be traced is what the user has to know
        return TraceableSubmodules((), ())
    finally:
        recorder.close()
    return traceable_submodules(recorder)


def run_for_real(root: nn.Module, call: Call, training: bool | None = None) -> None:
    """Run a call with its values, without gradients; network and arguments come out untouched.

    Args:
        root: The network.
        call: Which module is called and with what.
        training: Training flag of all modules; by default as they are.
    """
    args, kwargs = tree_map_only(Tensor, torch.clone, (call.args, dict(call.kwargs)))
    with buffers_kept(root), untouched(root), torch.no_grad(), uncompiled():
        for module in root.modules() if training is not None else ():
            module.training = bool(training)
        root.get_submodule(call.module)(*args, **kwargs)


def _traceable(recorder: CallRecorder, name: str, seen: set[str]) -> Iterator[Call]:
    """Yield the calls of a module, or else of those that it calls: a module may lie elsewhere by its first name."""
    if name in seen:
        return
    seen.add(name)
    own = recorder.calls_of(name)
    if all(_can_be_traced(recorder.root, call) for call in own):
        yield from own
        return
    for called in recorder.called_by(name):
        yield from _traceable(recorder, called, seen)


def _can_be_traced(root: nn.Module, call: Call) -> bool:
    try:
        trace(root, call)
    except TraceError:
        return False
    return True
