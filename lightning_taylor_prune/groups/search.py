"""Analyse a network until its own code agrees with what is predicted for every trial cut."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch import nn

from lightning_taylor_prune.errors import PruningError
from lightning_taylor_prune.groups.analysis import Analysis
from lightning_taylor_prune.groups.call_places import evidence_at, sites_alike, sites_on_the_line_of
from lightning_taylor_prune.groups.changes import CodeChanges
from lightning_taylor_prune.groups.dry_run import DryRun
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.infer_sizes import evidence_of, find_rewriting, find_size_rules
from lightning_taylor_prune.groups.infer_ties import find_ties, keeps_a_choice
from lightning_taylor_prune.groups.late_values import unset_attributes
from lightning_taylor_prune.groups.paths import Paths
from lightning_taylor_prune.groups.shapes import KeepMask
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.groups.trial import Contradiction, Trial
from lightning_taylor_prune.groups.trial_cuts import trial_cuts
from lightning_taylor_prune.groups.unread_sizes import unread_size_rules
from lightning_taylor_prune.labels.places import Lock, Rejection, Site, Tie
from lightning_taylor_prune.labels.propagate import propagate
from lightning_taylor_prune.labels.rules.registry import find_rules
from lightning_taylor_prune.labels.runs import LabelledRuns, run_on_labels
from lightning_taylor_prune.labels.twins import used_tensors
from lightning_taylor_prune.modules.idle import idle_axes, unused_tensors
from lightning_taylor_prune.modules.likeness import Twin
from lightning_taylor_prune.tracing.isolation import Snapshot
from lightning_taylor_prune.tracing.progress import note

Outcome = tuple[ChannelGroups, Contradiction | None]

_TIES_TRIED = 8
_PATIENCE = 6
"""How many contradictions are handled for one operator only. After that, or if the same line contradicts in a second
module, all calls of the operator on that line with the same shapes and sizes are handled at once."""


class Search:
    """Runs traces on labels until the network's code agrees with what is predicted.

    In every round more becomes known of the network: rules that its code contradicts, axes that are tied, and changes
    of its code.

    Args:
        model: The network.
        paths: How it is called, and what these calls run.
        rewrite_hard_coded: As in :func:`~lightning_taylor_prune.groups.find.find_groups`.
        fixed: Names of parameters and buffers that must keep their shapes.
        twins: Modules that follow others, and lose the same channels.
    """

    def __init__(
        self,
        model: nn.Module,
        paths: Paths,
        rewrite_hard_coded: bool,
        fixed: Collection[str],
        twins: Sequence[Twin],
    ) -> None:
        self._model, self._calls, self._traces = model, paths.calls, paths.traces
        self._rewrite, self._fixed, self._twins = rewrite_hard_coded, fixed, twins
        self._idle = idle_axes(model, unused_tensors(model, used_tensors(paths.traces, twins)))
        self._dry_run = DryRun(paths.traces, len(paths.shown), unset_attributes(model))
        self._snapshot = Snapshot(model)
        self._rejected: dict[Site, Rejection] = paths.unverified()
        self._ran: LabelledRuns | None = None  # as long as no other rules are in use
        self._locks: tuple[Lock, ...] = ()
        self._ties: tuple[Tie, ...] = ()
        self._changes = CodeChanges()
        self._rounds = 0
        self._untied: set[tuple[Any, ...]] = set()
        self._unexplained: set[Hashable] = set()
        self._could_follow: dict[tuple[str, ...], bool] = {}

    def run(self) -> ChannelGroups:
        """Return groups that no trial cut contradicts.

        Raises:
            PruningError: Whatever is locked, the network's code contradicts what is predicted.
        """
        groups, found = self.settle(self._structure())
        while found is not None:
            groups, found = self.tie(found) or self.reject(found)
        changes = groups.analysis.changes.with_rules(unread_size_rules(self._model, groups))
        return groups.with_changes(changes.shared_by(self._twins))

    def settle(self, structure: Structure) -> Outcome:
        """Try cuts of a structure, with all changes of the code that are known so far."""
        note("trying cuts on the network's own code")
        groups = ChannelGroups(Analysis.of(structure, self._changes, self._dry_run, self._calls))
        return try_cuts(self._snapshot, groups, self._rewrite, self._unexplained)

    def _structure(self, ties: Sequence[Tie] = ()) -> Structure:
        """Find what belongs together, with more ties than those that are known."""
        note(f"finding what belongs together among {sum(len(t.ops) for t in self._traces)} operators")
        if self._ran is None:
            self._ran = run_on_labels(self._traces, self._rejected)
        ties = (*self._ties, *ties)
        return Structure.of(propagate(self._ran, ties, self._fixed, self._locks, self._twins, self._idle))

    def tie(self, found: Contradiction) -> Outcome | None:
        """Tie axes of which the code mixes up the sizes, if it then gets further and some channels remain removable."""
        self._changes = found.trial.groups.analysis.changes
        site = found.divergence.site
        evidence = evidence_at(self._model, self._traces, site)
        place = found.divergence.lines, self._times_rejected(site), evidence
        if self._has_fallback(site) or place in self._untied:
            return None
        for ties in islice(find_ties(found.trial, found.divergence), _TIES_TRIED):
            if not keeps_a_choice(structure := self._structure(ties), ties[0]):
                continue
            groups, now = self.settle(structure)
            if now is None or now.divergence.site > site:
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
        note(f"contradiction {self._rounds}: {divergence.message}")
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
        self._ran = None
        return self.settle(self._structure())

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
        return self.settle(self._structure())

    def _could_be_rewritten(self, found: Contradiction) -> bool:
        """Whether rewriting the running code would help; inferred once for all modules that run the same lines."""
        lines = found.divergence.lines
        if lines not in self._could_follow:
            self._could_follow[lines] = bool(find_rewriting(found.trial, found.divergence)[1])
        return self._could_follow[lines]


def try_cuts(network: Snapshot, groups: ChannelGroups, rewrite: bool, unexplained: set[Hashable]) -> Outcome:
    """Try cuts of several patterns; return the first contradiction of the network's code.

    A contradiction may vanish when integers that modules hold change with the channels: the groups returned do so.

    Args:
        network: The network as it is now.
        groups: Its groups.
        rewrite: Whether integers in the code of modules may change, too.
        unexplained: Evidence of contradictions that no integers explain, to which more is added.
    """
    inferred = True
    while inferred:  # what is inferred from one pattern must hold for the others too
        inferred = False
        for removed in trial_cuts(groups):
            while (found := _contradiction(network, groups, removed)) is not None:
                changes = None if (evidence := _evidence_of(found)) in unexplained else _changes_for(found, rewrite)
                if changes is None:
                    unexplained.add(evidence)
                    return groups, found
                groups, inferred = groups.with_changes(changes), True
    return groups, None


def _contradiction(
    network: Snapshot, groups: ChannelGroups, removed: Mapping[str, Sequence[int]]
) -> Contradiction | None:
    trial = Trial(network.root, groups, groups.plan(removed), network)
    divergence = trial.run() if trial.plan else None
    return None if divergence is None else Contradiction(trial, divergence)


def _evidence_of(found: Contradiction) -> Hashable:
    return evidence_of(found.trial, found.divergence)


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
