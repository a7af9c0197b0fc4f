"""What the callback does once it is time: begin with a network, take in its gradients, prune it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_taylor_prune.callbacks.copies import FollowingCopies
from lightning_taylor_prune.callbacks.first_batch import FirstBatchRecorder
from lightning_taylor_prune.callbacks.metrics import log_prune
from lightning_taylor_prune.callbacks.resume import ResumablePruning
from lightning_taylor_prune.callbacks.strategies import Rewrap
from lightning_taylor_prune.callbacks.trainer_compat import (
    ValidationRequest,
    analysing,
    as_misconfiguration,
    warnings_of_first_rank,
)
from lightning_taylor_prune.callbacks.unprunable import OnUnprunable, analysis_and_reason
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.latency import LatencyTable
from lightning_taylor_prune.pruning.measured import with_latency
from lightning_taylor_prune.pruning.pruner import Pruner
from lightning_taylor_prune.pruning.ranks import Ranks
from lightning_taylor_prune.pruning.reach import check_targets
from lightning_taylor_prune.pruning.settings import Settings
from lightning_taylor_prune.pruning.stop import StopReason
from lightning_taylor_prune.pruning.transaction import Assignment
from lightning_taylor_prune.tracing.call import Call


class PruningSteps(ResumablePruning):
    """The work behind the hooks of :class:`~lightning_taylor_prune.callbacks.pruning.TaylorPruningCallback`.

    Args:
        target: Name of the submodule to prune.
        copies: Copies of the network to prune with it.
    """

    filters_per_prune: int | None
    validate_after_prune: bool
    on_unprunable: OnUnprunable
    rank_timeout: float

    def __init__(self, target: str | None, copies: Sequence[Any]) -> None:
        super().__init__()
        self.target = target
        self._module: LightningModule | None = None
        self._first_batch = FirstBatchRecorder(target)
        self._validation, self._copies = ValidationRequest(), FollowingCopies(copies)
        self._ranks: Ranks | None = None
        self._seen_step = self._scored_step = -1

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs to go on."""
        fresh = {"_module": None, "_ranks": None}
        return {**super().__getstate__(), **fresh, "_first_batch": FirstBatchRecorder(self.target)}

    def _close(self) -> None:
        """Remove all hooks from the network."""
        self._first_batch.close()
        super()._close()

    def _begin_if_new(self, pl_module: LightningModule) -> None:
        """Analyse the network at the first batch, and at one that calls it in other ways before the first prune."""
        self._follow_renamed(pl_module, self._first_batch)
        news = [] if self.history else self._first_batch.news_of_this_rank(self._ranks)
        if self.pruner is None or news:
            self._begin(pl_module, news or None)

    def _begin(self, pl_module: LightningModule, calls: Sequence[Call] | None = None) -> None:
        """Analyse the network and begin to score it; of one that a checkpoint has pruned, go on with its scores."""
        ranks, rewrite = self._ranks or Ranks(self.state_key, self.rank_timeout), self.settings.rewrite_hard_coded
        with analysing(pl_module), warnings_of_first_rank():
            found, reason = analysis_and_reason(
                lambda: self._first_batch.analyse(pl_module, ranks, rewrite, self._resumed, calls, self.groups),
                self.on_unprunable,
            )
        is_first = self.pruner is None and not self._resumed
        super()._close()
        if found is not None:
            before = self.pruner
            with as_misconfiguration():
                settings = self._measured(found[0], ranks)
                if is_first:  # later, what cannot be reached ends pruning, not the training
                    check_targets(found[0], settings.constraints)
                self.pruner = Pruner.of_groups(pl_module, settings, *found, ranks)
            self.pruner.twins = self._copies.twins or self.pruner.twins
            if before is not None:
                self.pruner.go_on_from(before)
            self._go_on_with_progress(pl_module)
            self.filters_before = self.pruner.groups.unpruned().filters
        if reason is not None:
            self._stop(StopReason.UNPRUNABLE, reason, warn=True)

    def _measured(self, groups: ChannelGroups, ranks: Ranks) -> Settings:
        """Return the settings with the latencies that they ask for, measured if they have not been before."""
        known = self._resumed.get("latency")
        limits = with_latency(self.settings.constraints, self.settings.rank_by, groups, ranks, known)
        return replace(self.settings, constraints=limits)

    def state_dict(self) -> dict[str, Any]:
        """Return where pruning stands, with latencies that were measured: others would choose other units."""
        state, given = super().state_dict(), self.settings.constraints.latencies
        table = None if self.pruner is None else self.pruner.settings.constraints.latency
        if given is None and isinstance(table, LatencyTable):
            state["latency"] = table.to_json()
        return state

    def _accumulate(self, trainer: Trainer, scale: float, parameters: set[int] | None = None) -> None:
        assert self.pruner is not None
        if trainer.global_step >= self.start_step:
            self.pruner.update(scale, parameters)
        else:
            self.pruner.discard()

    def _end_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune if an interval of optimizer steps is complete."""
        if self.stop_reason is None:
            if self.pruner is None and pl_module.automatic_optimization:
                return  # no backward pass yet: the training step returned None
            self._begin_if_new(pl_module)
        due = self._intervals_at(trainer.global_step) > self._intervals
        if due and not self._must_wait(trainer) and self.stop_reason is None:
            self._prune(trainer, pl_module)

    def _must_wait(self, trainer: Trainer) -> bool:
        """Whether the next prune must wait for something."""
        return False

    def _prune(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune and log it; or say why not."""
        if not self.history and (news := self._first_batch.news_of_all_ranks(pl_module, self._ranks)):
            return self._begin(pl_module, news)
        self._first_batch.close()
        assert self.pruner is not None
        self.pruner.optimizers = trainer.optimizers
        intervals = Assignment(self, "_intervals", self._intervals_at(trainer.global_step))
        with analysing(pl_module):
            outcome = self.pruner.prune(
                self.filters_per_prune,
                step=trainer.global_step,
                copies=self._copies.find(trainer, pl_module),
                holders=trainer.callbacks,  # type: ignore[attr-defined]
                further_steps=[Rewrap(trainer.strategy, pl_module, self.pruner.ranks), intervals],
            )
        intervals.commit()  # also where nothing was cut
        if outcome:
            log_prune(trainer, pl_module, self.history[-1], self.filters_after, self.max_prunes)
            if self.validate_after_prune:
                self._validation.make(trainer)
        self._stop_after(outcome)
