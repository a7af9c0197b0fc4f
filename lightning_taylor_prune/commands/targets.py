"""The network that a command is about: built by code that the user names, with example inputs of given shapes."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_taylor_prune.errors import ArgumentError, PlanError, missing_package
from lightning_taylor_prune.pruning.loading import load_pruned


@dataclass(frozen=True)
class Target:
    """A network and how it is called."""

    model: nn.Module
    inputs: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which network is meant."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="package.module:factory, which returns a network (or a network and a tuple of its inputs), or the name of "
        "a model of torchvision",
    )
    parser.add_argument("--kwargs", type=_json_object, default={}, metavar="JSON", help="arguments of the factory")
    parser.add_argument(
        "--input",
        dest="inputs",
        type=example_tensor,
        action="append",
        metavar="SHAPE[:DTYPE]",
        help="shape of the network's input, such as 1,3,224,224 or 1,128:int64; once for each of several",
    )
    parser.add_argument("--eval", action="store_true", help="take the network in evaluation mode, as detectors need it")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint or state dict, of the network pruned or not")


def example_tensor(text: str) -> Tensor:
    """Return zeros of a shape and dtype.

    Raises:
        ArgumentTypeError: The text is no shape.

    Example:
        >>> example_tensor("2,3:int64")
        tensor([[0, 0, 0],
                [0, 0, 0]])
    """
    sizes, _, name = text.partition(":")
    dtype = getattr(torch, name or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise argparse.ArgumentTypeError(f"expected a dtype of torch such as int64 after the colon, but got {name!r}")
    try:
        shape = [int(size) for size in sizes.split(",")]
    except ValueError:
        shape = [0]
    if min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected positive sizes such as 1,3,224,224, but got {text!r}")
    return torch.zeros(shape, dtype=dtype)


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected JSON such as '{{\"num_classes\": 10}}': {error}") from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object such as '{{\"num_classes\": 10}}', but got {text!r}")
    return found


def build_target(arguments: argparse.Namespace) -> Target:
    """Build the network that the arguments name, and load its weights.

    Raises:
        ArgumentError: It cannot be built, or it is not known how it is called.
        PlanError: The weights are not of this network.
    """
    factory = _factory(arguments.target)
    try:
        built = factory(**arguments.kwargs)
    except Exception as error:  # the user's code
        raise ArgumentError(f"`{arguments.target}` failed: {type(error).__name__}: {error}") from error
    model, inputs = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"Expected `{arguments.target}` to return a network, but got a {type(model).__name__}.")
    if arguments.inputs is not None:
        inputs = tuple(arguments.inputs)
    if inputs is None:
        raise ArgumentError("Expected the shape of the network's input: add --input 1,3,224,224, say.")
    if arguments.weights:
        _load_weights(model, arguments.weights)
    return Target(model.train(not arguments.eval), inputs if isinstance(inputs, tuple) else (inputs,))


def _factory(target: str) -> Callable[..., Any]:
    module, colon, name = target.partition(":")
    return _of_user(target, module, name) if colon else _of_torchvision(target)


def _of_user(target: str, module: str, name: str) -> Callable[..., Any]:
    """Import what the user names, as Python would from the present folder."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # the user's code, or none at all
        raise ArgumentError(f"`{target}` cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ArgumentError(f"Expected `{target}` to be a function or a class, but got a {type(found).__name__}.")
    return found


def _of_torchvision(name: str) -> Callable[..., Any]:
    try:
        from torchvision import models
    except ImportError as error:
        raise missing_package(f"The model `{name}` needs", "torchvision", "torchvision") from error
    try:
        builder: Callable[..., Any] = models.get_model_builder(name)
    except ValueError as error:
        raise ArgumentError(
            f"Expected package.module:factory or the name of a model of torchvision, but got {name!r}."
        ) from error
    return lambda **kwargs: builder(**{"weights": None, **_without_backbone(builder, kwargs)})


def _without_backbone(builder: Callable[..., Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keep torchvision from downloading the weights of a detector's backbone."""
    import inspect

    named = "weights_backbone" in inspect.signature(builder).parameters
    return {"weights_backbone": None, **kwargs} if named else dict(kwargs)


def _load_weights(model: nn.Module, path: str) -> None:
    if not path.endswith(".safetensors"):
        load_pruned(path, model)
        return
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise missing_package("This file needs", "safetensors", "safetensors") from error
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:  # safetensors raises errors of its own
        raise PlanError(f"{path} does not hold the weights of this network: {error}") from error
