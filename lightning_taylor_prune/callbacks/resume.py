"""Where pruning stands, through checkpoints: the module takes the shapes and sizes that a checkpoint has."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_taylor_prune.callbacks.copies import copies_of_module
from lightning_taylor_prune.callbacks.metrics import log_rows, validation_metrics
from lightning_taylor_prune.callbacks.trainer_compat import check_launcher, own_attributes
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.pruning.checkpoint import KEY, attributes_inside, set_attributes_of
from lightning_taylor_prune.pruning.loading import is_loadable, make_loadable
from lightning_taylor_prune.pruning.pruner import Pruner
from lightning_taylor_prune.pruning.record import record_of


class ResumablePruning(Callback):
    """Where pruning stands, and how that goes through checkpoints.

    Attributes:
        pruner: The :class:`~lightning_taylor_prune.pruning.pruner.Pruner` at work; ``None`` before the first batch.
        filters_before: Filters of every layer before the first prune.
        stop_reason: Why pruning ended, or ``None`` while it goes on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pruner: Pruner | None = None
        self.filters_before: dict[str, int] = {}
        self.stop_reason: str | None = None
        self._load_hooks: list[RemovableHandle] = []
        self._filters_after: dict[str, int] = {}
        self._resumed: dict[str, Any] = {}
        self._intervals = 0

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
        ``prunable_filters``, ``score_threshold``, ``skipped_minibatches``, ``scores`` (a few numbers for each group:
        :func:`~lightning_taylor_prune.pruning.select.score_summary`), and ``metrics`` of the validation that followed.
        """
        return self._resumed.get("history", []) if self.pruner is None else self.pruner.history

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
        metrics = validation_metrics(trainer)
        self.history[-1]["metrics"] = metrics
        row = {f"prune/{name}": value for name, value in metrics.items()}
        log_rows(trainer, {**row, "prune/count": self.history[-1]["count"]})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what the shapes of weights do not tell, for loading without this callback."""
        checkpoint[KEY] = record_of(pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the attributes that the weights' shapes left open."""
        attributes = checkpoint.get(KEY, {}).get("attributes", {})
        set_attributes_of(pl_module, attributes)
        copies = copies_of_module(trainer, pl_module, sizes=False)  # the module has the checkpoint's sizes by now
        self._make_loadable([copy_.holder for copy_ in copies])
        for copy_ in copies:
            set_attributes_of(copy_.holder, attributes_inside(attributes, copy_.prefix))

    def state_dict(self) -> dict[str, Any]:
        """Return where pruning stands, as plain data and tensors."""
        if self.pruner is None:
            return dict(self._resumed)
        return {**self.pruner.state_dict(), "intervals": self._intervals, "stop_reason": self.stop_reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint left off; the groups follow with the first batch."""
        if not state_dict:
            return
        self._close()
        self.pruner, self._resumed = None, dict(state_dict)
        self._intervals, self.stop_reason = state_dict["intervals"], state_dict["stop_reason"]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs to go on, as plain data: copies and pickles hold neither the network nor traces."""
        return {
            **own_attributes(self),
            "pruner": None,
            "_resumed": copy.deepcopy(self.state_dict()),
            "_filters_after": dict(self.filters_after),
            "_load_hooks": [],
        }

    def _make_loadable(self, networks: Sequence[nn.Module]) -> None:
        """Let networks take a checkpoint's shapes until `teardown`."""
        self._load_hooks += [make_loadable(network) for network in networks if not is_loadable(network)]

    def _close(self) -> None:
        """Remove all hooks from the network."""
        if self.pruner is not None:
            self.pruner.close()
