"""What is looked at before anything is computed, so that a mistake costs seconds and not a training."""

from __future__ import annotations

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
    "data.batch_size": (int,),
}
AT_LEAST_ONE = ("nodes", "data.batch_size")


def check_values(cfg: DictConfig) -> None:
    """Refuse plain settings of another type than they have, or too small."""
    for name, kinds in PLAIN.items():
        value: Any = OmegaConf.select(cfg, name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__.replace("NoneType", "null") for kind in kinds)
            raise RecipeError(f"Expected `{name}` to be {wanted}, got {value!r}")
    for name in AT_LEAST_ONE:
        if (value := OmegaConf.select(cfg, name)) < 1:
            raise RecipeError(f"Expected `{name}` to be at least 1, got {value}")


def chosen_stages(cfg: DictConfig) -> list[str]:
    """Return the stages to run, in order; weights that are given are loaded in place of ``train``."""
    asked = list(cfg.stage) if OmegaConf.is_list(cfg.stage) else [cfg.stage]
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
