"""The four stages of a pruning recipe: train or load, prune with fine-tuning, retrain, compare."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from lightning_taylor_prune import TaylorPruningCallback, find_groups, measure_cost
from recipes import comparison, plots
from recipes.data import ImageData
from recipes.errors import RecipeError
from recipes.models import ImageClassifier
from recipes.weights import load_weights

STAGES = ("train", "prune", "retrain")
console = Console()


class LossCurve(Callback):
    """Keeps the training loss of every mini-batch.

    Attributes:
        losses: Loss of each mini-batch, on the device it was computed on.
        iterations: Optimizer steps taken by the end of each mini-batch.
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.iterations: list[int] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss without reading it, which would make a GPU wait."""
        self.losses.append(outputs["loss"].detach())
        self.iterations.append(trainer.global_step)


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


@dataclass(frozen=True)
class Recipe:
    """What all stages share: configuration, images, and the folder for results."""

    cfg: DictConfig
    data: ImageData
    output: Path

    def trainer(self, **settings: Any) -> L.Trainer:
        """Build a trainer from what all stages share and ``settings``."""
        with quiet_lightning():
            return instantiate(self.cfg.trainer)(default_root_dir=self.output, **settings)

    def fit(self, stage: str, network: nn.Module, callbacks: Sequence[Callback] = ()) -> None:
        """Train ``network`` in place as the configuration of ``stage`` says; save the checkpoint."""
        settings = self.cfg[stage]
        module = ImageClassifier(
            network,
            self.data.num_classes,
            optimizer=instantiate(settings.optimizer),
            scheduler=instantiate(settings.scheduler),
        )
        make_loggers = instantiate(self.cfg.get("logger") or {}).values()
        trainer = self.trainer(
            **self.trainer_settings(stage),
            logger=[make(save_dir=self.output / "logs" / stage) for make in make_loggers],
            callbacks=list(callbacks),
        )
        console.rule(f"Stage {stage} on {trainer.strategy.root_device}")
        trainer.fit(module, datamodule=self.data)
        trainer.save_checkpoint(self.output / f"{stage}.ckpt", weights_only=False)

    def trainer_settings(self, stage: str) -> dict[str, Any]:
        """Return what ``stage`` adds to the trainer's configuration."""
        settings: dict[str, Any] = dict(self.cfg[stage].trainer)
        if stage == "prune" and settings["max_steps"] is None:
            pruning = self.cfg.pruning
            settings["max_steps"] = pruning.start_step + pruning.every_n_steps * pruning.max_prunes
        return settings

    def accuracy(self, network: nn.Module, part: str) -> float:
        """Return the accuracy (0 to 1) on the part ``val`` or ``test`` of the images."""
        trainer = self.trainer(logger=False, enable_progress_bar=False)
        module = ImageClassifier(network, self.data.num_classes)
        evaluate = {"val": trainer.validate, "test": trainer.test}[part]
        (metrics,) = evaluate(module, datamodule=self.data, verbose=False)
        return metrics[f"{part}_acc"]

    def measure(self, network: nn.Module) -> comparison.Measured:
        """Measure size, cost and test accuracy."""
        cost = measure_cost(network, self.data.example_images)
        return comparison.Measured(cost.params, cost.macs, cost.filters, self.accuracy(network, "test"))


def run(cfg: DictConfig) -> list[comparison.Row] | None:
    """Run the stages that ``cfg.stages`` names; returns the comparison if the network was pruned."""
    check_stages(cfg)
    if cfg.cpu_threads is not None:
        torch.set_num_threads(cfg.cpu_threads)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    recipe = Recipe(cfg, open_data(cfg.data), Path(cfg.output_dir))
    recipe.output.mkdir(parents=True, exist_ok=True)
    callback = instantiate(cfg.pruning)  # before any training, so that its arguments are checked
    network = train_or_load(recipe)
    if "prune" not in cfg.stages:
        return None
    original = copy.deepcopy(network)
    prune(recipe, network, callback)
    if "retrain" in cfg.stages:
        recipe.fit("retrain", network)
    torch.save(network.state_dict(), recipe.output / "pruned.pt")
    rows = comparison.compare(recipe.measure(original), recipe.measure(network))
    comparison.save(rows, recipe.output)
    console.print(comparison.as_table(rows))
    return rows


def check_stages(cfg: DictConfig) -> None:
    """Refuse a choice of stages that cannot work, before anything is loaded."""
    if unknown := [stage for stage in cfg.stages if stage not in STAGES]:
        raise RecipeError(f"Expected `stages` to be some of {', '.join(STAGES)}, got {', '.join(unknown)}")
    if "retrain" in cfg.stages and "prune" not in cfg.stages:
        raise RecipeError("Stage `retrain` follows `prune`: expected `stages` to have both")
    if "train" not in cfg.stages and cfg.weights is None:
        raise RecipeError("Expected `weights` to name a checkpoint, because `stages` leaves out `train`")


def open_data(cfg: DictConfig) -> ImageData:
    """Build the datamodule, check its files and open the training part."""
    data = instantiate(cfg)
    data.prepare_data()
    data.setup("fit")
    return data


def train_or_load(recipe: Recipe) -> nn.Module:
    """Build the network; fill it from ``cfg.weights``, or else train it."""
    cfg, data = recipe.cfg, recipe.data
    in_channels = data.example_images.shape[1]
    network = instantiate(cfg.model, in_channels=in_channels, num_classes=data.num_classes)
    if cfg.weights is not None:
        load_weights(network, Path(cfg.weights))
    else:
        recipe.fit("train", network)
    torch.save(network.state_dict(), recipe.output / "original.pt")
    return network


def prune(recipe: Recipe, network: nn.Module, callback: TaylorPruningCallback) -> None:
    """Prune ``network`` in place while it is fine-tuned; save the history and the plots."""
    curve = LossCurve()
    before = {
        "step": 0,
        "metrics": {"val_acc": recipe.accuracy(network, "val")},
        "prunable_filters": find_groups(network, recipe.data.example_images).num_prunable_filters,
    }
    recipe.fit("prune", network, [callback, curve])
    (recipe.output / "history.json").write_text(json.dumps(callback.history, indent=2) + "\n", "utf-8")
    events = [before, *callback.history]
    progress = plots.Progress(
        loss_iterations=curve.iterations,
        losses=[loss.item() for loss in curve.losses],
        iterations=[event["step"] for event in events],
        accuracies=[event["metrics"].get("val_acc", math.nan) for event in events],
        prunable_filters=[event["prunable_filters"] for event in events],
    )
    plots.save_png(plots.progress_figure(progress), recipe.output / "progress.png")
    filters = plots.filters_figure(callback.filters_before, callback.filters_after)
    plots.save_png(filters, recipe.output / "filters.png")
