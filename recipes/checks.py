"""What is looked at before anything is computed, so that a mistake costs seconds and not a training."""

from __future__ import annotations

import math
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from lightning_taylor_prune import PruningError, find_groups
from recipes.errors import RecipeError
from recipes.image_data import ImageData
from recipes.models import ImageClassifier

STAGES = ("train", "prune", "retrain", "compare")
PLAIN: dict[str, tuple[type, ...]] = {
    "seed": (int,),
    "cpu_threads": (int, type(None)),
    "channels_last": (bool,),
    "weights": (str, type(None)),
    "run": (str,),
    "nodes": (int,),
    "gpus": (int, str),
    "title": (str, type(None)),
    "data.batch_size": (int,),
}
AT_LEAST = {"seed": 0, "cpu_threads": 1, "nodes": 1, "gpus": 1, "data.batch_size": 1}
MAX_SEED = 2**32 - 1
OBJECTIVES = ("params", "val_acc")
TRAINED = ("train", "prune", "retrain")


def check_values(cfg: DictConfig) -> None:
    """Refuse plain settings of another type than they have, or too small, and numbers that are none."""
    for name, kinds in PLAIN.items():
        value: Any = OmegaConf.select(cfg, name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__.replace("NoneType", "null") for kind in kinds)
            raise RecipeError(f"Expected `{name}` to be {wanted}, got {value!r}")
    for name, least in AT_LEAST.items():
        if isinstance(value := OmegaConf.select(cfg, name), int) and value < least:
            raise RecipeError(f"Expected `{name}` to be at least {least}, got {value}")
    if cfg.seed > MAX_SEED:
        raise RecipeError(f"Expected `seed` to be at most {MAX_SEED}, got {cfg.seed}")
    if not OmegaConf.is_list(cfg.objectives) or not set(cfg.objectives) <= set(OBJECTIVES):
        raise RecipeError(
            f"Expected `objectives` to be a list of some of {', '.join(OBJECTIVES)}, got {cfg.objectives}"
        )
    if not OmegaConf.is_list(cfg.notes) or not all(isinstance(note, str) for note in cfg.notes):
        raise RecipeError(f"Expected `notes` to be a list of strings, got {cfg.notes}")
    if isinstance(cfg.gpus, str) and cfg.gpus != "auto":
        raise RecipeError(f"Expected `gpus` to be an int of at least 1, or auto, got {cfg.gpus!r}")
    for stage in TRAINED:
        check_optimizer(stage, cfg[stage].optimizer)
    pruning = cfg.pruning
    if pruning.get("max_prunes", 0) is None and cfg.prune.trainer.get("max_steps", 0) is None:
        raise RecipeError("Expected `prune.trainer.max_steps` to be an int, got None: `pruning.max_prunes` is null")
    check_finite(OmegaConf.to_container(cfg, resolve=False))


def check_optimizer(stage: str, optimizer: DictConfig) -> None:
    """Refuse words where an optimizer takes numbers, and a momentum with which nothing converges."""
    for name, value in optimizer.items():
        if isinstance(value, str) and name != "_target_":
            raise RecipeError(f"Expected `{stage}.optimizer.{name}` to be a finite number or a bool, got {value!r}")
    momentum = optimizer.get("momentum", 0)
    if isinstance(momentum, (int, float)) and not 0 <= momentum < 1:
        raise RecipeError(f"Expected `{stage}.optimizer.momentum` to be a number in [0, 1), got {momentum}")


def check_finite(settings: Any, name: str = "") -> None:
    """Refuse NaN and infinity, anywhere in the configuration."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            check_finite(value, f"{name}.{key}" if name else str(key))
    elif isinstance(settings, list):
        for value in settings:
            check_finite(value, name)
    elif isinstance(settings, float) and not math.isfinite(settings):
        raise RecipeError(f"Expected `{name}` to be a finite number, got {settings}")


def chosen_stages(cfg: DictConfig) -> list[str]:
    """Return the stages to run, in order; weights that are given are loaded in place of ``train``."""
    asked = list(cfg.stage) if OmegaConf.is_list(cfg.stage) else [cfg.stage]
    if not asked:
        raise RecipeError(f"Expected `stage` to be some of {', '.join(STAGES)}, got none")
    if unknown := [str(stage) for stage in asked if stage not in STAGES]:
        raise RecipeError(f"Expected `stage` to be some of {', '.join(STAGES)}, got {', '.join(unknown)}")
    return [stage for stage in STAGES if stage in asked or (stage == "train" and cfg.weights is not None)]


def check_network(network: nn.Module, data: ImageData, pruning: DictConfig) -> None:
    """Refuse a network that cannot take the images, and a target or layers that it does not have."""
    module, images = ImageClassifier(network, data.num_classes), data.example_images
    try:
        find_groups(module, images)
    except PruningError as error:
        size = " x ".join(map(str, images.shape[1:]))
        raise RecipeError(f"`model` does not take images of {size} (channels x height x width): {error}") from error
    target, names = pruning.get("target"), [name for name, _ in network.named_modules(prefix="network")]
    if target is not None and target not in names:
        near = ", ".join(name for name in names if name.count(".") < 2)
        raise RecipeError(f"Expected `pruning.target` to name a part of the network, got {target}; there are {near}")
