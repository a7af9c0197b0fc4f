"""Where pruning stands, through checkpoints: the module takes the shapes and sizes that a checkpoint has."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_taylor_prune.callbacks.arguments import (
    Structure,
    arguments_of,
    resume_with_other_arguments,
    state_of_renamed,
    structure_of,
)
from lightning_taylor_prune.callbacks.copies import copies_of_module
from lightning_taylor_prune.callbacks.first_batch import FirstBatchRecorder
from lightning_taylor_prune.callbacks.masks import cut_layers_of_masks
from lightning_taylor_prune.callbacks.metrics import log_rows, validation_metrics
from lightning_taylor_prune.callbacks.trainer_compat import (
    analysing,
    check_launcher,
    own_attributes,
    warnings_of_first_rank,
)
from lightning_taylor_prune.callbacks.unprunable import reason_to_stop
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.pruning.checkpoint import KEY, attributes_inside, set_attributes_of
from lightning_taylor_prune.pruning.loading import is_loadable, make_loadable
from lightning_taylor_prune.pruning.outcome import PruneOutcome, history_of_data
from lightning_taylor_prune.pruning.pruner import Pruner
from lightning_taylor_prune.pruning.rank_scores import scores_of_all_ranks
from lightning_taylor_prune.pruning.record import record_of
from lightning_taylor_prune.pruning.settings import Settings
from lightning_taylor_prune.pruning.stop import StopReason, stop_as_data, stop_of_data


class ResumablePruning(Callback):
    """Where pruning stands, and how that goes through checkpoints.

    Attributes:
        pruner: The :class:`~lightning_taylor_prune.pruning.pruner.Pruner` at work; ``None`` before the first batch.
        filters_before: Filters of every layer before the first prune.
        stop_reason: Why pruning ended, as a :class:`~lightning_taylor_prune.pruning.stop.StopReason`; ``None`` while
            it goes on.
        stop_message: The same as a sentence.
    """

    target: str | None
    settings: Settings
    every_n_steps: int
    start_step: int
    max_prunes: int | None
    _first_batch: FirstBatchRecorder

    further_limits: Mapping[str, Any] = {}
    """Arguments of subclasses that say when pruning ends, for checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.pruner: Pruner | None = None
        self.filters_before: dict[str, int] = {}
        self.stop_reason: StopReason | None = None
        self.stop_message: str | None = None
        self._load_hooks: list[RemovableHandle] = []
        self._filters_after: dict[str, int] = {}
        self._resumed: dict[str, Any] = {}
        self._intervals = 0
        self._structure: Structure | None = None

    @property
    def num_prunes(self) -> int:
        """Prunes so far, without those that were taken back."""
        return sum(not row.get("taken_back") for row in self.history)

    @property
    def groups(self) -> ChannelGroups | None:
        """The groups of the network as it is now; ``None`` before the first batch."""
        return None if self.pruner is None else self.pruner.groups

    @property
    def filters_after(self) -> dict[str, int]:
        """Filters of every layer now."""
        return self._filters_after if self.pruner is None else self.pruner.groups.filters

    @property
    def history(self) -> list[dict[str, Any]]:
        """One dict for each prune.

        Its keys are ``step``, ``count``, ``removed``, ``params``, ``macs`` (per example), ``filters``,
        ``num_prunable_filters``, ``score_threshold`` (the highest value removed, of those that ``rank_by`` compares),
        ``skipped_minibatches``, ``scores`` (a few numbers for each group:
        :func:`~lightning_taylor_prune.pruning.summary.score_summary`), ``metrics`` of the validation that followed, and
        ``taken_back``: whether an earlier network came back, as `stop_if` was missed.
        """
        return self._resumed.get("history", []) if self.pruner is None else self.pruner.history

    @property
    def prunes_left(self) -> int | None:
        """How many prunes are to come at most; ``None`` without a limit."""
        if self.max_prunes is None:
            return None
        done = self.num_prunes
        if self.settings.budget.spreads(self.settings.constraints):  # one may have found nothing that fits its share
            done = self._resumed.get("attempts", done) if self.pruner is None else self.pruner.attempts
        return max(self.max_prunes - done, 0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the module take a checkpoint's shapes, from before a checkpoint is read."""
        if not is_loadable(pl_module):
            check_launcher(trainer)
        # A callback listed before this one has copied the module already, without the hook.
        self._make_loadable([pl_module, *(copy.holder for copy in copies_of_module(trainer, pl_module))])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take back what `setup` put on the module."""
        for hook in self._load_hooks:
            hook.remove()
        self._load_hooks = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what the network is worth after the last prune."""
        if trainer.sanity_checking or not self.history or self.history[-1]["metrics"]:
            return
        if self.history[-1].get("taken_back"):
            return  # another network is validated
        metrics = validation_metrics(trainer)
        self.history[-1]["metrics"] = metrics
        row = {f"prune/{name}": value for name, value in metrics.items()}
        log_rows(trainer, {**row, "prune/count": self.history[-1]["count"]})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what the shapes of weights do not tell, for loading without this callback; and what all ranks saw."""
        checkpoint[KEY] = record_of(pl_module)
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if self.pruner is not None and state is not None:
            state["scores"] = scores_of_all_ranks(self.pruner.criterion, self.pruner.ranks, trainer.interrupted)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the attributes that the weights' shapes left open; find the callback's state also by another name."""
        attributes = checkpoint.get(KEY, {}).get("attributes", {})
        set_attributes_of(pl_module, attributes)
        copies = copies_of_module(trainer, pl_module, sizes=False)  # the module has the checkpoint's sizes by now
        self._make_loadable([copy_.holder for copy_ in copies])
        for copy_ in copies:
            set_attributes_of(copy_.holder, attributes_inside(attributes, copy_.prefix))
        if (state := state_of_renamed(self, trainer, checkpoint)) is not None:
            self.load_state_dict(dict(state))

    def state_dict(self) -> dict[str, Any]:
        """Return where pruning stands, and the arguments that have brought it there, as plain data and tensors."""
        if self.pruner is None:
            return dict(self._resumed)
        stop = stop_as_data(self.stop_reason, self.stop_message)
        own = {"intervals": self._intervals, "arguments": arguments_of(self), "calls": self._first_batch.state_dict()}
        return {**self.pruner.state_dict(), **stop, **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint left off, with the arguments as they are now; groups follow with the first batch."""
        if not state_dict:
            return
        self._close()
        self._first_batch.forget()
        self.pruner, self._resumed = None, {**state_dict, "history": history_of_data(state_dict["history"])}
        self._intervals = state_dict["intervals"]
        self.stop_reason, self.stop_message = stop_of_data(state_dict)
        resume_with_other_arguments(self, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs to go on, as plain data: copies and pickles hold neither the network nor traces."""
        return {
            **own_attributes(self),
            "pruner": None,
            "_resumed": copy.deepcopy(self.state_dict()),
            "_filters_after": dict(self.filters_after),
            "_load_hooks": [],
            "_structure": None,
        }

    def _make_loadable(self, networks: Sequence[nn.Module]) -> None:
        """Let networks take a checkpoint's shapes until `teardown`."""
        self._load_hooks += [make_loadable(network) for network in networks if not is_loadable(network)]

    def _forget(self) -> None:
        """Begin anew, with another module."""
        self._close()
        self._first_batch.forget()
        self.pruner, self.filters_before = None, {}
        self.stop_reason = self.stop_message = None
        self._resumed, self._intervals = {}, 0

    def _reopen(self, pl_module: LightningModule) -> None:
        """Go on with the same network; analyse it anew if it was changed meanwhile."""
        assert self.pruner is not None
        if self._structure in (None, structure_of(pl_module)):
            self.pruner.reopen()
        else:
            rank_zero_warn("The network was changed since the last `fit`, and is analysed and pruned as a new one.")
            self._forget()

    def _go_on_with_progress(self, pl_module: LightningModule) -> None:
        """Take up the history and the scores of a checkpoint, if training goes on from one."""
        if self._resumed and self.pruner is not None:
            self.pruner.load_progress(self._resumed)
            cut_layers_of_masks(pl_module.trainer, pl_module, self.pruner.groups)
            self._resumed = {}

    def _follow_renamed(self, pl_module: LightningModule, recorder: FirstBatchRecorder) -> None:
        """Analyse the network anew if its parameters have got other names: `ModelPruning` puts masks on them."""
        if self.pruner is not None and self.pruner.is_renamed:
            with recorder.paused(), analysing(pl_module), warnings_of_first_rank():
                self.pruner.analyse_renamed()

    def _intervals_at(self, step: int) -> int:
        return max(step - self.start_step, 0) // self.every_n_steps

    def _stop_after(self, outcome: PruneOutcome) -> None:
        """End pruning where a target is reached, nothing is left to prune, or all prunes are done."""
        assert self.pruner is not None
        done = outcome and self.max_prunes is not None and self.num_prunes >= self.max_prunes
        limits, prunes = self.pruner.settings.constraints, self.max_prunes if done else None
        if (stop := reason_to_stop(outcome, limits, self.pruner.groups, prunes)) is not None:
            self._stop(*stop, warn=outcome.reason == "nothing_left")

    def _stop_after_last(self) -> None:
        if self.max_prunes is not None and self.num_prunes >= self.max_prunes:
            self._stop(StopReason.MAX_PRUNES, f"all {self.max_prunes} prunes are done")

    def _stop(self, reason: StopReason, message: str, warn: bool = False) -> None:
        """End pruning; training goes on."""
        self.stop_reason, self.stop_message = reason, message
        (rank_zero_warn if warn else rank_zero_info)(f"Pruning ends after {self.num_prunes} prunes: {message}.")
        self._close()

    def _close(self) -> None:
        """Remove all hooks from the network."""
        if self.pruner is not None:
            self.pruner.close()
