"""Where pruning stands, as plain data and tensors: from there a training goes on."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lightning_taylor_prune.errors import PlanError
from lightning_taylor_prune.pruning.analysed import AnalysedNetwork
from lightning_taylor_prune.pruning.original import OriginalNetwork
from lightning_taylor_prune.pruning.outcome import history_of_data
from lightning_taylor_prune.pruning.prune import cut_tensors_
from lightning_taylor_prune.pruning.trained import TrainedParameters


class PruningProgress(AnalysedNetwork):
    """The part of a :class:`~lightning_taylor_prune.pruning.pruner.Pruner` that checkpoints keep."""

    optimizers: Sequence[object] | object
    attempts: int
    _updates: int

    def state_dict(self) -> dict[str, Any]:
        """Return where pruning stands, as plain data and tensors; each rank has its own scores."""
        return {
            "history": copy.deepcopy(self.history),
            "refused": sorted(self.refused),
            "updates": self._updates,
            "attempts": self.attempts,
            "kept": {name: torch.from_numpy(units.copy()) for name, units in self.groups.kept_units().items()},
            "original": self.original.state_dict(),
            "criterion": self.settings.criterion,
            "scores": self.criterion.state_dict(),
            "trained": sorted(self._trained.names),
            "sums": {} if self.history else dict(self.twins.sums),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint left off; the network takes the checkpoint's shapes.

        Build the network as its code builds it, unpruned, then the pruner, then load the pruner's state; the
        network's and the optimizers' own states fit after that.

        Raises:
            PlanError: The state is one of another network, or of one with channels that this one has lost.
        """
        if not self.history:
            self._tie(OriginalNetwork.from_state_dict(state["original"]).twins)
        restricted = self.groups.unpruned().restricted(state["kept"])
        kept, now = restricted.kept_units(), self.groups.kept_units()
        if absent := [name for name in now if not set(kept[name].tolist()) <= set(now[name].tolist())]:
            raise PlanError(f"The network has lost channels that the state has: groups {', '.join(absent[:8])}.")
        lost = {name: np.flatnonzero(~np.isin(now[name], kept[name])).tolist() for name in now}
        cut_tensors_(self.model, self.groups.plan(lost), self.optimizers, self.settings.optimizer_state)
        self.groups = restricted
        self.load_progress(state)

    def load_progress(self, state: Mapping[str, Any]) -> None:
        """Take up history and scores of a checkpoint, for a network that has the checkpoint's shapes already."""
        self.history = history_of_data(state["history"])
        self.refused, self.twins.sums = set(state["refused"]), state.get("sums", {})
        self.attempts = state.get("attempts", len(self.history))
        self._updates, self._trained = state["updates"], TrainedParameters(state.get("trained", ()))
        if self.groups.kept_units().keys() != state["kept"].keys():
            return  # analysed anew, as it runs other ways than before the checkpoint: it is scored from here on
        self.original = OriginalNetwork.from_state_dict(state["original"])
        before = state.get("criterion", now := self.settings.criterion)
        self.restart_criterion(state["scores"] if before == now else None)
        if before != now:
            self._warn(f"The scores so far are dropped: they are of `{before}`, and now `{now}` judges.")
