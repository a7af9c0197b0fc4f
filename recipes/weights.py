"""Loading trained weights into a network, with errors that say what does not fit."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from recipes.errors import RecipeError

NAMED = 3  # layers that an error names
ENUM = re.compile(r"\w+_Weights\.\w+")  # e.g. ResNet18_Weights.IMAGENET1K_V1


def load_weights(network: nn.Module, source: str | Path, new_head: bool = False) -> None:
    """Load trained weights into ``network``, in place.

    Args:
        network: The network, of the same shapes.
        source: A file (``*.safetensors``, or a state dict, bare or from a Lightning checkpoint), or the name of
            weights of torchvision such as ``ResNet18_Weights.IMAGENET1K_V1``, which are downloaded on first use.
        new_head: Whether the last layer may have another number of outputs; it is then not loaded.

    Raises:
        RecipeError: The file is not there, cannot be read, or holds another network.
    """
    state = from_torchvision(str(source)) if ENUM.fullmatch(str(source)) else from_file(Path(source))
    if new_head:
        state = without_head(state, network.state_dict())
    expected, found = shapes(network.state_dict()), shapes(state)
    if odd := [name for name in {**expected, **found} if expected.get(name) != found.get(name)]:
        first = "; ".join(differs(name, expected.get(name), found.get(name)) for name in odd[:NAMED])
        more = f"; and {len(odd) - NAMED} more" if len(odd) > NAMED else ""
        raise RecipeError(f"{source} holds another network than `model`, {len(odd)} tensors differ: {first}{more}")
    network.load_state_dict(state)


def from_torchvision(name: str) -> Mapping[str, Tensor]:
    """Return weights of torchvision by name; they are downloaded unless they have been before."""
    try:
        state: Mapping[str, Tensor] = torchvision.models.get_weight(name).get_state_dict(
            progress=False, check_hash=True
        )
    except (ValueError, AttributeError, KeyError) as error:
        raise RecipeError(f"torchvision has no weights {name}: expected such as ResNet18_Weights.DEFAULT") from error
    except (URLError, RuntimeError) as error:
        raise RecipeError(f"The weights {name} could not be downloaded: {error}") from error
    return state


def from_file(path: Path) -> Mapping[str, Tensor]:
    """Return the weights that a file holds."""
    if not path.is_file():
        raise RecipeError(f"No file {path}: expected `weights` to name a checkpoint")
    return unwrap(read(path))


def without_head(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put a network's own last layer in the place of one that has other outputs."""
    if not own or not state:
        return dict(state)
    head = list(own)[-1].rpartition(".")[0]
    names = [name for name in own if name.rpartition(".")[0] == head]
    changed = any(name in state and state[name].shape[:1] != own[name].shape[:1] for name in names)
    same_inputs = all(name in state and state[name].shape[1:] == own[name].shape[1:] for name in names)
    return {**state, **{name: own[name] for name in names}} if changed and same_inputs else dict(state)


def read(path: Path) -> Any:
    """Read what a file holds, as plain data and tensors only."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        reason = str(error).partition("\n")[0] or "it ends too early"
        raise RecipeError(f"Cannot read {path} as a checkpoint: {reason}") from error


def unwrap(content: Any) -> dict[str, Tensor]:
    """Return the network's state dict from the content of a file; empty if there is none."""
    if not isinstance(content, dict):
        return {}
    if "state_dict" in content:
        return {name.removeprefix("network."): value for name, value in content["state_dict"].items()}
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def differs(name: str, expected: tuple[int, ...] | None, found: tuple[int, ...] | None) -> str:
    """Say how one tensor of a file differs from the network's."""
    if expected is None:
        return f"{name} is not in the network"
    if found is None:
        return f"{name} is not in the file"
    return f"{name} has shape {found}, expected {expected}"
