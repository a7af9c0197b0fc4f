"""A network that was analysed, and is analysed again where it turns out to be another than it seemed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from lightning_taylor_prune.criteria import CRITERIA, Criterion
from lightning_taylor_prune.errors import PruningError, PruningWarning
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.modules.likeness import Twin, is_inside
from lightning_taylor_prune.pruning.original import OriginalNetwork
from lightning_taylor_prune.pruning.ranks import Ranks
from lightning_taylor_prune.pruning.renamed import renamed_scored, shapes_with_renamed, vanished
from lightning_taylor_prune.pruning.settings import Settings
from lightning_taylor_prune.pruning.trained import TrainedParameters
from lightning_taylor_prune.pruning.twins import TwinWatch, carried_scores


class AnalysedNetwork:
    """The part of a :class:`~lightning_taylor_prune.pruning.pruner.Pruner` that knows the network."""

    model: nn.Module
    settings: Settings
    groups: ChannelGroups
    ranks: Ranks
    history: list[dict[str, Any]]
    original: OriginalNetwork
    twins: TwinWatch
    criterion: Criterion
    refused: set[str]
    _trained: TrainedParameters
    _lost: frozenset[str] = frozenset()

    def _settle_twins(self, named: Sequence[str], holders: Sequence[object]) -> None:
        """Before the first prune, analyse anew if other modules follow than seemed to at first: now they have moved.

        Args:
            named: Names of modules of which the user says that they follow.
            holders: Objects beside the network whose code may update it.
        """
        if self.history:
            return
        found = self.twins.settled(self.model, self.groups, self._trained.names, named, holders)
        for twin in self.twins.undecided:
            self._warn(
                f"`{twin.follower}` is built as `{twin.leader}` and has values like it, but has not changed so far: it "
                "is taken for a teacher, and keeps its channels. If it is updated from the other one later, name it: "
                f"`copies=[lambda module: module.get_submodule({twin.follower!r})]`."
            )
        for name in named:
            if not any(is_inside(twin.follower, name) for twin in found):
                self._warn(f"`{name}` is one of `copies`, but no trained part has parameters of its names and shapes.")
        self._tie([Twin(*names) for names in self.ranks.from_first([list(twin) for twin in found])])

    def _tie(self, twins: Sequence[Twin]) -> None:
        """Analyse a network that has lost nothing yet anew if other modules follow than in its groups."""
        if set(twins) != set(self.groups.twins):
            before, self.original = self.groups, replace(self.original, twins=tuple(twins))
            before.analysis.dry_run.forget_results()
            former, rewrite = before.structure.propagation.traces, self.settings.rewrite_hard_coded
            self.groups = self.original.find_groups(self.model, before.calls, rewrite, former)
            self.restart_criterion(carried_scores(self.criterion.state_dict(), before, self.groups))

    def go_on_from(self, before: AnalysedNetwork) -> None:
        """Take over what is known of the network, and its scores where the groups are the same, before it is pruned.

        Args:
            before: The network as it was analysed over fewer calls.
        """
        self._trained = before._trained
        own, former = self.groups.kept_units(), before.groups.kept_units()
        if own.keys() == former.keys() and all(np.array_equal(units, former[name]) for name, units in own.items()):
            self.restart_criterion(carried_scores(before.criterion.state_dict(), before.groups, self.groups))

    def _analysed_anew(self) -> bool:
        """Analyse again if the network does other things than it did, uncut (a path joined); say whether it was.

        Groups that are new have lost nothing yet; the scores of the others are kept.
        """
        if self.groups.verify(self.model, self.groups.plan({})) is None:
            return False
        before = self.groups
        found = self.original.find_groups(self.model, before.calls, self.settings.rewrite_hard_coded)
        sizes = {group.name: group.original_num_channels for group in found.unpruned()}
        if any(sizes.get(g.name) != g.original_num_channels for g in before.unpruned()):
            return False  # it ties other channels now: what is concerned is refused
        self.groups = found.restricted({**found.kept_units(), **before.kept_units()})
        state = carried_scores(self.criterion.state_dict(), before, self.groups)
        state["scored"] |= dict.fromkeys(self._trained.names, True)  # of what reads them now, too
        self.restart_criterion(state)
        self._warn("The network does other things than when it was analysed first, and was analysed again.")
        return True

    @property
    def is_renamed(self) -> bool:
        """Whether parameters of the network have got other names than they had when it was analysed."""
        return vanished(self.model, self.groups.shapes) not in (frozenset(), self._lost)

    def analyse_renamed(self) -> None:
        """Analyse a network again whose parameters have got other names, as under masks; the scores so far are kept.

        Where it cannot be analysed, or its groups are others than before it was pruned, it is pruned no more.
        """
        kept, before = self.groups.kept_units(), self.groups
        self._lost = vanished(self.model, before.shapes)
        original = replace(self.original, shapes=shapes_with_renamed(self.model, self.original.shapes, before.shapes))
        try:
            found = original.find_groups(self.model, before.calls, self.settings.rewrite_hard_coded)
        except PruningError as error:
            return self._give_up(f"it cannot be analysed as it is now. {error}")
        same = found.kept_units().keys() == kept.keys()
        if self.history and not same:
            return self._give_up("other channels belong together than when it was pruned first.")
        if not self.history:
            original = OriginalNetwork.of(self.model, found)
        self.original, self.groups, self._lost = original, found.restricted(kept) if same else found, frozenset()
        state = self.criterion.state_dict()
        state["scored"] |= renamed_scored(state["scored"], found.shapes)
        self.restart_criterion(state if same else None)

    def _give_up(self, why: str) -> None:
        """Prune none of the groups from now on."""
        self.refused |= {group.name for group in self.groups}
        names = ", ".join(sorted(self._lost)[:4])
        self._warn(f"The network is no longer pruned: it has lost parameters of these names ({names}), and {why}")

    def _new_criterion(self) -> Criterion:
        return CRITERIA[self.settings.criterion](self.model, self.groups)

    def restart_criterion(self, so_far: dict[str, Any] | None = None) -> None:
        """Begin to score the groups as they are now, or go on from the scores so far."""
        self.criterion.close()
        self.criterion = self._new_criterion()
        if so_far is not None:
            self.criterion.load_state_dict(so_far)

    def _warn(self, message: str) -> None:
        if self.ranks.rank == 0:
            warnings.warn(message, PruningWarning, stacklevel=4)
