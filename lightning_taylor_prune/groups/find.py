"""Analyse a network until its own code agrees with what is predicted for every trial cut."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch import nn

from lightning_taylor_prune.errors import PruningError, PruningWarning, TraceError
from lightning_taylor_prune.groups.analysis import Analysis
from lightning_taylor_prune.groups.call_places import evidence_at, sites_alike, sites_on_the_line_of
from lightning_taylor_prune.groups.changes import CodeChanges
from lightning_taylor_prune.groups.dry_run import DryRun
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.infer_sizes import find_rewriting, find_size_rules
from lightning_taylor_prune.groups.infer_ties import find_ties, keeps_a_choice
from lightning_taylor_prune.groups.shapes import KeepMask
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.groups.trial import Contradiction, Trial
from lightning_taylor_prune.groups.trial_cuts import trial_cuts
from lightning_taylor_prune.labels.places import Lock, Rejection, Site, Tie
from lightning_taylor_prune.labels.propagate import Propagation, propagate
from lightning_taylor_prune.labels.rules.registry import find_rules
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.graph import trace_both_modes
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
    unchanged afterwards. A network that depends on the values of tensors (a detector, say) is run once with real
    values, and those of its submodules that do not depend on them are analysed: backbone and heads.

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
    traces = [t for call in calls for t in trace_both_modes(model, call, shapes)]
    search = _Search(model, calls, traces, rewrite_hard_coded, (*fixed, *scripted_tensors(model)))
    groups, found = search.settle()
    while found is not None:
        groups, found = search.tie(found) or search.reject(found)
    return groups


Outcome = tuple[ChannelGroups, Contradiction | None]

_TIES_TRIED = 8
_PATIENCE = 6
"""How many contradictions are handled for one operator only. After that, or if the same line contradicts in a second
module, all calls of the operator on that line with the same shapes and sizes are handled at once."""


class _Search:
    """Runs traces on labels until the network's code agrees with what is predicted.

    In every round more becomes known of the network: rules that its code contradicts, axes that are tied, and changes
    of its code.
    """

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[Call],
        traces: Sequence[Trace],
        rewrite_hard_coded: bool,
        fixed: Collection[str],
    ) -> None:
        self._model, self._calls, self._traces = model, calls, traces
        self._rewrite, self._fixed = rewrite_hard_coded, fixed
        self._dry_run = DryRun(traces)
        self._rejected: dict[Site, Rejection] = {}
        self._locks: tuple[Lock, ...] = ()
        self._ties: tuple[Tie, ...] = ()
        self._changes = CodeChanges()
        self._rounds = 0
        self._untied: set[tuple[Any, ...]] = set()
        self._could_follow: dict[tuple[str, ...], bool] = {}

    def settle(self, ties: Sequence[Tie] = ()) -> Outcome:
        """Propagate labels with more ties and try the outcome, with all changes of the code that are known so far."""
        structure = Structure.of(self._propagate(ties))
        groups = ChannelGroups(Analysis.of(structure, self._changes, self._dry_run, self._calls))
        return try_cuts(self._model, groups, self._rewrite)

    def _propagate(self, ties: Sequence[Tie]) -> Propagation:
        return propagate(self._traces, self._rejected, (*self._ties, *ties), self._fixed, self._locks)

    def tie(self, found: Contradiction) -> Outcome | None:
        """Tie axes of which the code mixes up the sizes, if it then gets further and some channels remain removable."""
        self._changes = found.trial.groups.analysis.changes
        site = found.divergence.site
        evidence = evidence_at(self._model, self._traces, site)
        place = found.divergence.lines, self._times_rejected(site), evidence
        if self._has_fallback(site) or place in self._untied:
            return None
        for ties in islice(find_ties(found.trial, found.divergence), _TIES_TRIED):
            groups, now = self.settle(ties)
            further = now is None or now.divergence.site > site
            if further and keeps_a_choice(groups.structure, ties[0]):
                self._ties += tuple(ties)
                return groups, now
        self._untied.add(place)  # nor will ties help where other modules run the same lines on the same sizes
        return None

    def _times_rejected(self, site: Site) -> int:
        return self._rejected[site].times if site in self._rejected else 0

    def _has_fallback(self, site: Site) -> bool:
        rules = find_rules(self._traces[site.trace].ops[site.op].target)
        return rules is not None and self._times_rejected(site) < len(rules.fallbacks)

    def reject(self, found: Contradiction) -> Outcome:
        """Try the next rule of the operator, or lock the channels that it uses; at last the groups of the cut.

        Every round rejects a rule that was in use, or locks channels that could be removed: the rounds come to an end.
        """
        self._rounds += 1
        divergence = found.divergence
        elsewhere = sites_on_the_line_of(self._traces, divergence.site) - {divergence.site}
        widely = self._rounds > _PATIENCE or any(site in self._rejected for site in elsewhere)
        message = divergence.message
        if not self._rewrite and self._could_be_rewritten(found):
            message += "; `rewrite_hard_coded=True` would make them prunable"
        site = _nearest_prunable(found.trial.groups, divergence.site)
        if site is None:
            return self._lock_what_was_removed(found.trial, message)
        times = self._times_rejected(site) + 1
        for same in {site, *sites_alike(self._model, self._traces, site)} if widely else {site}:
            if self._times_rejected(same) < times:  # one that is ahead has been given another rule already
                self._rejected[same] = Rejection(times, message)
        return self.settle()

    def _lock_what_was_removed(self, trial: Trial, message: str) -> Outcome:
        """Lock the groups of a cut that the code contradicts where no operator touches them.

        Raises:
            PruningError: They are on no parameter, so that nothing would be locked, and the same cut tried for ever.
        """
        roots = np.concatenate([trial.groups[name].roots for name in trial.plan.removed])
        labels = np.flatnonzero(np.isin(trial.structure.parameter_roots, roots))
        if not len(labels):
            raise PruningError(
                f"The analysis cannot go on: {message}. No channel that could be removed explains it. Prune a part of "
                "the network that runs the same operators at every call, by `target=`."
            )
        self._locks += (Lock(labels, message),)
        return self.settle()

    def _could_be_rewritten(self, found: Contradiction) -> bool:
        """Whether rewriting the running code would help; inferred once for all modules that run the same lines."""
        lines = found.divergence.lines
        if lines not in self._could_follow:
            self._could_follow[lines] = bool(find_rewriting(found.trial, found.divergence)[1])
        return self._could_follow[lines]


def try_cuts(model: nn.Module, groups: ChannelGroups, rewrite: bool) -> Outcome:
    """Try cuts of several patterns; return the first contradiction of the network's code.

    A contradiction may vanish when integers that modules hold change with the channels: the groups returned do so.
    """
    inferred = True
    while inferred:  # what is inferred from one pattern must hold for the others too
        inferred = False
        for removed in trial_cuts(groups):
            while (found := _contradiction(model, groups, removed)) is not None:
                changes = _changes_for(found, rewrite)
                if changes is None:
                    return groups, found
                groups, inferred = groups.with_changes(changes), True
    return groups, None


def _contradiction(
    model: nn.Module, groups: ChannelGroups, removed: Mapping[str, Sequence[int]]
) -> Contradiction | None:
    trial = Trial(model, groups, groups.plan(removed))
    divergence = trial.run() if trial.plan else None
    return None if divergence is None else Contradiction(trial, divergence)


def _changes_for(found: Contradiction, rewrite: bool) -> CodeChanges | None:
    """Return the changes of modules with which the code gets further, or ``None`` if no changes help."""
    changes = found.trial.groups.analysis.changes
    names: tuple[str, ...] = ()
    rules = find_size_rules(found.trial, found.divergence)
    if not rules and rewrite:
        names, rules = find_rewriting(found.trial, found.divergence)
    return changes.with_rewritten(names).with_rules(rules) if rules else None


def _nearest_prunable(groups: ChannelGroups, site: Site) -> Site | None:
    """Return the nearest operator that uses channels which can be removed, earlier operators first; else ``None``."""
    structure = groups.structure
    prunable = np.zeros(len(structure.propagation.roots), dtype=bool)
    prunable[groups.unit_roots] = True
    ops = range(len(structure.propagation.traces[site.trace].ops))
    nearest = (Site(site.trace, op) for op in [*ops[site.op :: -1], *ops[site.op + 1 :]])
    return next((near for near in nearest if _touches(structure, near, prunable)), None)


def _touches(structure: Structure, site: Site, prunable: KeepMask) -> bool:
    """Whether an operator's operands or results carry channels that can still be removed."""
    propagation = structure.propagation
    touched = propagation.touched[site.trace][site.op]
    return any(prunable[propagation.roots[f]].any() for value in touched for f in value.fields)
