"""Find groups of channels, of a whole network or of those of its submodules that can be traced."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from lightning_taylor_prune.errors import PruningError, PruningWarning, TraceError
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.paths import Paths
from lightning_taylor_prune.groups.search import Search
from lightning_taylor_prune.labels.idle import COULD_BE_USED
from lightning_taylor_prune.modules.likeness import Twin, likely_twins
from lightning_taylor_prune.tracing.call import Call, tree_fake
from lightning_taylor_prune.tracing.fakes import FakeMode
from lightning_taylor_prune.tracing.garbage import no_full_collections
from lightning_taylor_prune.tracing.paths import answered_paths, passages, trace_paths
from lightning_taylor_prune.tracing.progress import note, reporting
from lightning_taylor_prune.tracing.recorder import Trace
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
    unchanged afterwards. A network that depends on the values of tensors (``if x.sum() > 0``, a detector) is run with
    the real values of ``example_inputs``, and analysed as it ran with these; where even that fails, those of its
    submodules are analysed that do not depend on values.

    A part that no gradient reaches and whose values are like those of a trained part with parameters of the same names
    and shapes (a momentum encoder) is taken for an average of it: it loses the same channels.

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

    def answered() -> Sequence[Call]:
        return answered_paths(model, [call])

    submodules = partial(submodules_of_call, model, call)
    with reporting():  # also of the search for submodules
        return groups_of_network(model, [call], answered, submodules, rewrite_hard_coded, likely_twins(model))


def groups_of_network(
    model: nn.Module,
    calls: Sequence[Call],
    answered: Callable[[], Sequence[Call]],
    submodules: Callable[[], TraceableSubmodules],
    rewrite_hard_coded: bool = False,
    twins: Sequence[Twin] = (),
) -> ChannelGroups:
    """Find groups of the whole network; where that depends on values, with those of a real run; else of submodules.

    Args:
        model: The network.
        calls: How it is called.
        answered: Returns the calls with what their operators give for real; only asked if they cannot be traced
            without.
        submodules: Finds what can be traced of it; only asked if the whole cannot be traced even so.
        rewrite_hard_coded: As in :func:`find_groups`.
        twins: Modules that follow others (averages of their weights) and lose the same channels.

    Raises:
        TraceError: Neither can be traced, or nothing can be removed from the submodules.
    """
    try:
        return groups_of_calls(model, calls, rewrite_hard_coded=rewrite_hard_coded, twins=twins)
    except TraceError as error:
        if not error.in_forward:
            raise
        reason = error
    try:
        return groups_of_calls(model, answered(), rewrite_hard_coded=rewrite_hard_coded, twins=twins)
    except PruningError:
        found = submodules()
    if not found.calls:
        raise reason
    groups = groups_of_calls(model, found.calls, None, rewrite_hard_coded, found.fixed, twins)
    if not groups.num_units:
        raise reason
    warnings.warn(found.describe(str(reason)), PruningWarning, stacklevel=3)
    return groups


def groups_with_calls(
    model: nn.Module, groups: ChannelGroups, news: Sequence[Call], rewrite_hard_coded: bool
) -> ChannelGroups:
    """Find the groups of an unpruned network anew, as it is called in further ways.

    Args:
        model: The network.
        groups: Its groups so far.
        news: Further calls, with real tensors where they may depend on the values of these.
        rewrite_hard_coded: As in :func:`find_groups`.

    Raises:
        TraceError: One of the further calls cannot be traced.
    """
    fakes = [tree_fake(call, FakeMode()) for call in news]
    groups.analysis.dry_run.forget_results()
    further = rewrite_hard_coded, groups.fixed, groups.twins, groups.structure.propagation.traces
    try:
        return groups_of_calls(model, [*groups.calls, *fakes], None, *further)
    except TraceError as error:
        if not error.in_forward:
            raise
    return groups_of_calls(model, [*groups.calls, *answered_paths(model, news)], None, *further)


def groups_of_calls(
    model: nn.Module,
    calls: Sequence[Call],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    rewrite_hard_coded: bool = False,
    fixed: Collection[str] = (),
    twins: Sequence[Twin] = (),
    former: Sequence[Trace] = (),
) -> ChannelGroups:
    """Find groups over several ways in which a network is called; what any of them ties together is tied.

    Args:
        model: The network.
        calls: How it is called.
        shapes: Shapes of its parameters and buffers before it was pruned, to find the groups of that network.
        rewrite_hard_coded: As in :func:`find_groups`.
        fixed: Names of parameters and buffers that must keep their shapes, as they are used outside of the calls.
        twins: As in :func:`groups_of_network`.
        former: Traces of the same calls that were made before. The code may take other paths now; what it did then
            still counts.
    """
    with reporting(), no_full_collections():
        note("tracing the network")
        traces = [t for call in calls for t in trace_paths(model, call, shapes)]
        known = {found for t in traces for found in passages(t)} if former else set()
        paths = Paths(calls, traces, [t for t in former if not passages(t) <= known])
        fixed = (*fixed, *scripted_tensors(model))
        groups = Search(model, paths, rewrite_hard_coded, fixed, twins).run()
    _warn_of_layers_that_do_not_run(groups)
    return groups


def _warn_of_layers_that_do_not_run(groups: ChannelGroups) -> None:
    reasons = {entry.reason: None for entry in groups.locked if entry.reason.startswith(COULD_BE_USED)}
    if reasons:
        warnings.warn(
            f"Some channels are locked as each {'; each '.join(reasons)}. Remove such layers if nothing uses them, or "
            "analyse the network as it runs with them.",
            PruningWarning,
            stacklevel=4,
        )
