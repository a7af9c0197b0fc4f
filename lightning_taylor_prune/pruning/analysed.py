"""A network that was analysed, and is analysed again where it turns out to be another than it seemed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_taylor_prune.criteria import CRITERIA, Criterion
from lightning_taylor_prune.errors import PruningWarning
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.modules.likeness import Twin
from lightning_taylor_prune.pruning.original import OriginalNetwork
from lightning_taylor_prune.pruning.ranks import Ranks
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
    _trained: TrainedParameters

    def _settle_twins(self) -> None:
        """Before the first prune, analyse anew if other modules follow than seemed to at first: now they have moved."""
        if self.history:
            return
        found = self.twins.settled(self.model, self.groups, self._trained.names)
        self._tie([Twin(*names) for names in self.ranks.from_first([list(twin) for twin in found])])

    def _tie(self, twins: Sequence[Twin]) -> None:
        """Analyse a network that has lost nothing yet anew if other modules follow than in its groups."""
        if set(twins) != set(self.groups.twins):
            before, self.original = self.groups, replace(self.original, twins=tuple(twins))
            before.analysis.dry_run.forget_results()
            former, rewrite = before.structure.propagation.traces, self.settings.rewrite_hard_coded
            self.groups = self.original.find_groups(self.model, before.calls, rewrite, former)
            self.restart_criterion(carried_scores(self.criterion.state_dict(), before, self.groups))

    def _analysed_anew(self) -> bool:
        """Analyse again if the network does other things than it did, uncut (a hook was added); say whether it was."""
        if self.groups.verify(self.model, self.groups.plan({})) is None:
            return False
        kept = self.groups.kept_units()
        found = self.original.find_groups(self.model, self.groups.calls, self.settings.rewrite_hard_coded)
        if found.kept_units().keys() != kept.keys():  # it ties other channels now: what is concerned is refused
            return False
        self.groups = found.restricted(kept)
        self._warn("The network does other things than when it was analysed first, and was analysed again.")
        return True

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
