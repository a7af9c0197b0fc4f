"""Find groups of channels, of a whole network or of those of its submodules that can be traced."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_taylor_prune.errors import PruningWarning, TraceError
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.search import Search
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.graph import trace_both_modes
from lightning_taylor_prune.tracing.progress import note, reporting
from lightning_taylor_prune.tracing.submodules import TraceableSubmodules, submodules_of_call
from lightning_taylor_prune.tracing.tensors import scripted_tensors


def find_groups(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    rewrite_hard_coded: bool = False,
) -> ChannelGroups:
    """Find which channels of a network can be removed, and which must be removed together.

    The network is run on fake tensors, in training and in evaluation mode; nothing is computed, and it is
    unchanged afterwards. A network that depends on the values of tensors (a detector, say) is run once with real
    values, and those of its submodules that do not depend on them are analysed: backbone and heads.

    An analysis of more than two seconds says so, and every five what it does, to the logger ``lightning_taylor_prune``
    at level INFO: ``logging.basicConfig(level=logging.INFO)`` shows it. Under a Trainer, the callback's is shown.

    Args:
        model: Any network.
        example_inputs: A tensor, or a tuple of positional arguments (tensors nested as the network takes them).
        example_kwargs: Keyword arguments.
        rewrite_hard_coded: Where a module's own code holds sizes as numbers (``view(-1, 64)``, ``x[:, :8]``), let
            :func:`~lightning_taylor_prune.pruning.prune.prune_` give that module a generated `forward` in which these
            numbers change with pruning; by default such channels are locked. The module becomes an
            instance of a subclass of the same name; parameters, hooks and the keys of the state dict do not change.

    Returns:
        The groups, and in ``groups.locked`` what cannot be pruned, with the reason.

    Raises:
        TraceError: The network cannot be run on fake tensors, and no submodule that can be has removable channels.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> [(group.name, group.num_channels) for group in find_groups(net, torch.zeros(1, 3, 8, 8))]
        [('0', 8)]
    """
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    call = Call("", args, dict(example_kwargs or {}))
    with reporting():  # also of the search for submodules
        return groups_of_network(model, [call], lambda: submodules_of_call(model, call), rewrite_hard_coded)


def groups_of_network(
    model: nn.Module,
    calls: Sequence[Call],
    submodules: Callable[[], TraceableSubmodules],
    rewrite_hard_coded: bool = False,
) -> ChannelGroups:
    """Find groups of the whole network, or else of the submodules that can be traced.

    Args:
        model: The network.
        calls: How it is called.
        submodules: Finds what can be traced of it; only asked if the whole cannot be traced.
        rewrite_hard_coded: As in :func:`find_groups`.

    Raises:
        TraceError: Neither can be traced, or nothing can be removed from the submodules.
    """
    try:
        return groups_of_calls(model, calls, rewrite_hard_coded=rewrite_hard_coded)
    except TraceError as error:
        found = submodules() if error.in_forward else None
        if found is None or not found.calls:
            raise
        groups = groups_of_calls(model, found.calls, rewrite_hard_coded=rewrite_hard_coded, fixed=found.fixed)
        if not groups.num_units:
            raise
        warnings.warn(found.describe(str(error)), PruningWarning, stacklevel=3)
        return groups


def groups_of_calls(
    model: nn.Module,
    calls: Sequence[Call],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    rewrite_hard_coded: bool = False,
    fixed: Collection[str] = (),
) -> ChannelGroups:
    """Find groups over several ways in which a network is called; what any of them ties together is tied.

    Args:
        model: The network.
        calls: How it is called.
        shapes: Shapes of its parameters and buffers before it was pruned, to find the groups of that network.
        rewrite_hard_coded: As in :func:`find_groups`.
        fixed: Names of parameters and buffers that must keep their shapes, as they are used outside of the calls.
    """
    with reporting():
        note("tracing the network")
        traces = [t for call in calls for t in trace_both_modes(model, call, shapes)]
        fixed = (*fixed, *scripted_tensors(model))
        return Search(model, calls, traces, rewrite_hard_coded, fixed).run()
