"""The four stages of a pruning recipe: train or load, prune with fine-tuning, retrain, compare."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lightning_taylor_prune import Recovery, TaylorPruningCallback, find_groups
from lightning_taylor_prune.callbacks import LossCurve
from lightning_taylor_prune.report import Results, groups_of
from lightning_taylor_prune.report import compare as comparison
from lightning_taylor_prune.report.comparison import as_table
from lightning_taylor_prune.report.page import write_report
from recipes import evaluation
from recipes.checks import check_network, check_values, chosen_stages
from recipes.command import command_line
from recipes.folder import ORIGINAL, OUTCOME, PRUNED, PRUNING, RESULTS, RETRAINED, TEST, RunFolder, digest, write_json
from recipes.image_data import ImageData
from recipes.interrupts import Interrupted
from recipes.recipe import Recipe, check_types, init_of, on_rank_zero, say
from recipes.weights import load_weights

NEEDS = {"train": (), "prune": (ORIGINAL,), "retrain": (PRUNED,), "compare": (ORIGINAL, PRUNED, PRUNING)}
MAKES = {"train": (ORIGINAL,), "prune": (PRUNED, PRUNING), "retrain": (RETRAINED,), "compare": ()}


def run(cfg: DictConfig) -> dict[str, float]:
    """Run the stages that ``cfg.stage`` names; an interrupted run continues from the stage where it stopped.

    Returns:
        ``params`` and ``val_acc`` of the network that came out last, which is what a search over settings may look at;
        empty if no stage made one.
    """
    check_values(cfg)
    folder = RunFolder(Path(cfg.output_dir), Path(cfg.run))
    stages = folder.still_to_do(chosen_stages(cfg))
    check_inputs(folder, stages)
    if cfg.cpu_threads is not None:
        torch.set_num_threads(cfg.cpu_threads)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    recipe = Recipe(cfg, open_data(cfg.data), folder)
    callback = instantiate(cfg.pruning)  # before any training, so that its arguments are checked
    instantiate(cfg.get("recovery"))
    check_network(recipe.build(), recipe.data, cfg.pruning)
    for stage in set(stages) & {"train", "prune", "retrain"}:
        recipe.check(stage)
    for number, stage in enumerate(stages):
        try:
            {"train": train, "prune": lambda r: prune(r, callback), "retrain": retrain, "compare": compare}[stage](
                recipe
            )
        except KeyboardInterrupt as stop:  # outside of training, which answers signals itself
            raise Interrupted(f"stopped by SIGINT in stage {stage}", stages[number:]) from stop
    return outcome(recipe)


def check_inputs(folder: RunFolder, stages: list[str]) -> None:
    """Refuse, before anything is computed, stages that lack what earlier ones make."""
    made: set[str] = set()
    for stage in stages:
        for name in NEEDS[stage]:
            if name not in made:
                folder.need(name, stage)
        made |= set(MAKES[stage])


def open_data(cfg: DictConfig) -> ImageData:
    """Build the datamodule, check its files and open the training part."""
    check_types({str(name): cfg[name] for name in cfg if name in cfg}, init_of(cfg), "`data`")
    data: ImageData = instantiate(cfg)
    data.prepare_data()
    data.setup("fit")
    return data


def train(recipe: Recipe) -> None:
    """Train the network, or load ``cfg.weights`` instead."""
    network = recipe.build()
    if recipe.cfg.weights is not None:
        load_weights(network, recipe.cfg.weights)
    else:
        if recipe.cfg.train.start is not None:
            load_weights(network, recipe.cfg.train.start, new_head=True)
        recipe.fit("train", network)
    recipe.finish("train", network, ORIGINAL)


def prune(recipe: Recipe, callback: TaylorPruningCallback) -> None:
    """Prune the network while it is fine-tuned; save it and how it went."""
    network, curve = recipe.saved(ORIGINAL, "prune"), LossCurve()
    before: dict[str, Any] = {
        "step": 0,
        "metrics": {"val_acc": recipe.accuracy(network)},
        "num_prunable_filters": find_groups(network, recipe.data.example_images).num_prunable_filters,
    }
    recipe.fit("prune", network, [*recovery(recipe, "prune"), callback, curve], before["metrics"])
    record = {
        "before": before,
        "history": callback.history,
        "stop_reason": callback.stop_reason,
        "stop_message": callback.stop_message,
        "filters_before": callback.filters_before,
        "filters_after": callback.filters_after,
        "groups": [asdict(group) for group in groups_of(callback.groups)] if callback.groups is not None else [],
        "pruning": OmegaConf.to_container(recipe.cfg.pruning, resolve=True),
        "command": command_line(),
        "curve": curve.state_dict(),
    }
    if on_rank_zero():
        write_json(recipe.folder.output / PRUNING, record)
    recipe.finish("prune", network, PRUNED)


def retrain(recipe: Recipe) -> None:
    """Train the pruned network on."""
    network = recipe.saved(PRUNED, "retrain")
    recipe.fit("retrain", network, recovery(recipe, "retrain"))
    recipe.finish("retrain", network, RETRAINED)


def recovery(recipe: Recipe, stage: str) -> list[Recovery]:
    """Return what lets the original network teach the pruned one, if that is asked for."""
    if recipe.cfg.get("recovery") is None:
        return []
    return [instantiate(recipe.cfg.recovery, teacher=recipe.saved(ORIGINAL, stage))]


def compare(recipe: Recipe) -> None:
    """Set the original beside the pruned network: table, plots and page."""
    last = RETRAINED if RETRAINED in recipe.made or recipe.folder.find(RETRAINED) else PRUNED
    networks = [recipe.saved(name, "compare") for name in (ORIGINAL, last)]
    counts = test_images(recipe, networks)
    if not on_rank_zero():
        return
    device = recipe.evaluator().strategy.root_device
    times = evaluation.latencies(networks, recipe.data, device)
    original, pruned = (
        evaluation.network_result(*known) for known in zip(networks, [recipe.data] * 2, counts, times, strict=True)
    )
    record = recipe.folder.read_json(PRUNING, "compare")
    results = Results(
        title=recipe.cfg.title or f"Pruning a {type(networks[0]).__name__}",
        command=record["command"],
        class_names=tuple(recipe.data.class_names),
        original=original,
        pruned=pruned,
        progress=evaluation.progress(record),
        history=tuple(record["history"]),
        groups=evaluation.groups(record),
        notes=tuple(recipe.cfg.notes),
        environment=evaluation.environment(device),
    )
    results.save(recipe.folder.output / RESULTS)
    page = write_report(results, recipe.folder.output)
    say(as_table(comparison(original, pruned)))
    say(f"Report: {page}", markup=False, soft_wrap=True)


def test_images(recipe: Recipe, networks: list[Any]) -> list[list[list[int]]]:
    """Return both confusion matrices on the test images, which are read once: a second report finds them in a file."""
    key = [digest(network) for network in networks]
    file = recipe.folder.find(TEST)
    kept = recipe.folder.read_json(TEST, "compare") if file else {}
    if kept.get("networks") == key:
        counts: list[list[list[int]]] = kept["counts"]
        return counts
    counts = [evaluation.confusion(network, recipe.data, recipe.evaluator()) for network in networks]
    if on_rank_zero():
        write_json(recipe.folder.output / TEST, {"networks": key, "counts": counts})
    return counts


def outcome(recipe: Recipe) -> dict[str, float]:
    """Measure, on held-out images, the last network that this process made."""
    made = [recipe.made[name] for name in (RETRAINED, PRUNED, ORIGINAL) if name in recipe.made]
    if not made:
        return {}
    accuracy = recipe.accuracy(made[0])
    say(f"Accuracy on held-out images: {100 * accuracy:.2f} %")
    found = {"params": sum(p.numel() for p in made[0].parameters()), "val_acc": accuracy}
    if on_rank_zero():
        write_json(recipe.folder.output / OUTCOME, found)
    return found
