"""Pruned checkpoints under a Trainer: the module takes the shapes and sizes that a checkpoint has."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_taylor_prune.callbacks.trainer_compat import check_launcher
from lightning_taylor_prune.pruning.checkpoint import (
    KEY,
    attributes_of,
    is_loadable,
    make_loadable,
    set_attributes_of,
)


class LoadsPrunedCheckpoints(Callback):
    """Lets a module load checkpoints of its pruned selves, whatever the Trainer does with it."""

    def __init__(self) -> None:
        super().__init__()
        self._load_hook: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the module take a checkpoint's shapes, from before a checkpoint is read."""
        if not is_loadable(pl_module):
            check_launcher(trainer)
            self._load_hook = make_loadable(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take back what `setup` put on the module."""
        if self._load_hook is not None:
            self._load_hook.remove()
            self._load_hook = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what the shapes of weights do not tell, for loading without this callback."""
        checkpoint[KEY] = {"attributes": attributes_of(pl_module)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the attributes that the weights' shapes left open."""
        set_attributes_of(pl_module, checkpoint.get(KEY, {}).get("attributes", {}))
