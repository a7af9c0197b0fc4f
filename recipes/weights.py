"""Loading trained weights into a network, with errors that say what does not fit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes.errors import RecipeError


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a state dict, bare or from a checkpoint of :class:`ImageClassifier`, into ``network``."""
    if not path.is_file():
        raise RecipeError(f"No file {path}: expected `weights` to name a checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0] or "it ends too early"
        raise RecipeError(f"Cannot read {path} as a checkpoint: {reason}") from error
    state = unwrap(content)
    expected, found = shapes(network.state_dict()), shapes(state)
    if odd := [name for name in {**expected, **found} if expected.get(name) != found.get(name)]:
        first = f"{odd[0]} has shape {found.get(odd[0])}, expected {expected.get(odd[0])}"
        raise RecipeError(f"{path} holds another network than `model`: {len(odd)} tensors differ, {first}")
    network.load_state_dict(state)


def unwrap(content: Any) -> dict[str, Tensor]:
    """Return the network's state dict from the content of a file; empty if there is none."""
    if not isinstance(content, dict):
        return {}
    if "state_dict" in content:
        return {name.removeprefix("network."): value for name, value in content["state_dict"].items()}
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
