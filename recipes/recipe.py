"""What the stages of a recipe share: configuration, images, folder, and how a stage trains."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import lightning as L
import torch
from hydra.utils import get_object, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from rich.console import Console
from torch import nn

from lightning_taylor_prune.callbacks import PruningFigures, end_run
from recipes.errors import RecipeError
from recipes.folder import RunFolder
from recipes.image_data import ImageData
from recipes.interrupts import Resumable
from recipes.models import ImageClassifier

console = Console()


@rank_zero_only
def say(*words: Any, **how: Any) -> None:
    """Print, on the first rank only."""
    console.print(*words, **how)


def on_rank_zero() -> bool:
    """Whether this is the process that writes files and prints, the first rank."""
    return getattr(rank_zero_only, "rank", 0) == 0


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hold back what Lightning says whenever a Trainer is made; a recipe makes several."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def check_types(values: Mapping[str, Any], function: Callable[..., Any], where: str) -> None:
    """Refuse values of another type than a function's plain annotations (``int | None``, ``bool``) name."""
    for name, hint in get_type_hints(function).items():
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if name not in values or not all(kind in (int, float, bool, str, type(None)) for kind in kinds):
            continue
        if not isinstance(values[name], (*kinds, *((int,) if float in kinds else ()))):
            wanted = " or ".join(kind.__name__.replace("NoneType", "null") for kind in kinds)
            raise RecipeError(f"{where}: expected `{name}` to be {wanted}, got {values[name]!r}")


def init_of(cfg: DictConfig) -> Callable[..., Any]:
    """Return what takes the settings of a configured object: a class's `__init__`, or a function."""
    made = get_object(cfg._target_)
    return made.__init__ if isinstance(made, type) else made


@dataclass(frozen=True)
class Recipe:
    """What all stages share.

    Args:
        cfg: The composed configuration.
        data: The images, training part open.
        folder: Where results lie.
        made: Networks that stages of this process made, by file name; ranks need not wait for each other's files.
    """

    cfg: DictConfig
    data: ImageData
    folder: RunFolder
    made: dict[str, nn.Module] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Build the network as the configuration describes it, in the memory format asked for."""
        channels, where = self.data.example_images.shape[1], "`model`"
        check_types({str(name): value for name, value in self.cfg.model.items()}, init_of(self.cfg.model), where)
        network: nn.Module = instantiate(self.cfg.model, in_channels=channels, num_classes=self.data.num_classes)
        return network.to(memory_format=torch.channels_last if self.cfg.channels_last else torch.contiguous_format)

    def saved(self, name: str, stage: str) -> nn.Module:
        """Return a copy of a network that an earlier stage, or an earlier run, made."""
        if name in self.made:
            return copy.deepcopy(self.made[name])
        return self.folder.load_network(self.build(), name, stage)

    def finish(self, stage: str, network: nn.Module, name: str) -> None:
        """Save what a stage made; only then is the stage finished."""
        self.made[name] = network.cpu()
        if on_rank_zero():
            self.folder.save_network(network, name)
            self.folder.unfinished(stage).unlink(missing_ok=True)

    def trainer(self, **settings: Any) -> L.Trainer:
        """Build a trainer from what all stages share and ``settings``."""
        with quiet_lightning():
            trainer: L.Trainer = instantiate(self.cfg.trainer)(default_root_dir=self.folder.output, **settings)
        return trainer

    def check(self, stage: str) -> None:
        """Refuse, before any training, what a Trainer or an optimizer would not take for this stage."""
        settings = self.trainer_settings(stage)
        check_types({**self.cfg.trainer, **settings}, L.Trainer.__init__, f"`trainer` or `{stage}.trainer`")
        parameter = nn.Parameter(torch.zeros(1))
        try:
            self.trainer(**settings)
        except (TypeError, ValueError, MisconfigurationException) as error:
            raise RecipeError(f"`trainer` or `{stage}.trainer`: {error}") from error
        try:
            optimizer = instantiate(self.cfg[stage].optimizer)([parameter])
            if self.cfg[stage].scheduler is not None:
                instantiate(self.cfg[stage].scheduler)(optimizer)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"`{stage}.optimizer` or `{stage}.scheduler`: {error}") from error

    def evaluator(self) -> L.Trainer:
        """Build a trainer that only evaluates."""
        return self.trainer(logger=False, enable_progress_bar=False)

    def accuracy(self, network: nn.Module) -> float:
        """Return the accuracy (0 to 1) on the held-out part of the training images."""
        module = ImageClassifier(network, self.data.num_classes)
        (metrics,) = self.evaluator().validate(module, datamodule=self.data, verbose=False)
        return metrics["val_acc"]

    def fit(
        self,
        stage: str,
        network: nn.Module,
        callbacks: Sequence[Callback] = (),
        metrics_before: Mapping[str, float] | None = None,
    ) -> None:
        """Train ``network`` in place as the configuration of ``stage`` says, or continue where it was interrupted."""
        settings, state = self.cfg[stage], self.folder.unfinished(stage)
        L.seed_everything(self.cfg.seed, workers=True, verbose=False)  # a stage by itself does what it does in a row
        module = ImageClassifier(
            network,
            self.data.num_classes,
            optimizer=instantiate(settings.optimizer),
            scheduler=instantiate(settings.scheduler),
        )
        trainer = self.trainer(
            **self.trainer_settings(stage),
            enable_checkpointing=True,
            logger=self.loggers(stage),
            callbacks=[*callbacks, *self.watchers(metrics_before or {}), Resumable(state)],
        )
        if on_rank_zero():
            console.rule(f"Stage {stage} on {trainer.strategy.root_device}")
        begun = time.perf_counter()
        trainer.fit(module, datamodule=self.data, ckpt_path=state if state.is_file() else None, weights_only=True)
        for logger in trainer.loggers:
            end_run(logger)
        say(f"Stage {stage} took {time.perf_counter() - begun:.0f} s")

    def watchers(self, metrics_before: Mapping[str, float]) -> list[Callback]:
        """Build the callbacks of the configuration; figures also show how good the network was before."""
        watchers = list(instantiate(self.cfg.get("callbacks") or {}).values())
        for watcher in watchers:
            if isinstance(watcher, PruningFigures):
                watcher.metrics_before = dict(metrics_before)
        return watchers

    def loggers(self, stage: str) -> list[Any]:
        """Build the loggers of a stage; one that continues after an interruption keeps what was logged before."""
        folder = self.folder.output / "logs" / stage
        if self.folder.unfinished(stage).is_file():
            legs = len(list(folder.parent.glob(f"{stage}*")))
            folder = folder.with_name(f"{stage}-{legs + 1}") if legs else folder
        return [make(save_dir=folder) for make in instantiate(self.cfg.get("logger") or {}).values()]

    def trainer_settings(self, stage: str) -> dict[str, Any]:
        """Return what ``stage`` adds to the trainer's configuration."""
        settings: dict[str, Any] = dict(self.cfg[stage].trainer)
        if stage == "prune" and settings["max_steps"] is None:
            pruning = self.cfg.pruning
            settings["max_steps"] = pruning.start_step + pruning.every_n_steps * pruning.max_prunes
        return settings
