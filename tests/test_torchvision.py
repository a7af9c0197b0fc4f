"""Every classification network of torchvision: grouped, pruned by 30 % everywhere, equal to its masked self, trained.

No network is held twice: what masking zeroes is just what pruning removes, so one and the same network is masked, run,
pruned and run again. Weights are filled cheaply, networks above 100 M parameters are run in float32, and the two giants
of more than 600 M wait for each other: a process peaks below 6 GiB.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.pruning.prune import prune_
from tests.oracles import (
    TOLERANCE,
    evaluate,
    mask_readers_,
    random_units,
    randomize_norms_,
    relative_error,
    training_step,
)

NAMES = torchvision.models.list_models(module=torchvision.models)
TRANSFORMERS = ("vit_", "swin_", "maxvit_")
GIANTS = ("regnet_y_128gf", "vit_h_14")
QUICK = ["alexnet", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5"]

# Input sizes where 64 pixels will not do: auxiliary heads and fixed windows.
SIZES = {"inception_v3": 299, "maxvit_t": 224, "vit_h_14": 56}


def arguments(name: str) -> dict[str, Any]:
    if name.startswith("vit_"):
        return {"image_size": SIZES.get(name, 64)}
    return {"init_weights": False} if name in ("googlenet", "inception_v3") else {}


def cheap_(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Fill a weight so that signals keep their size, at a fraction of the time of a careful initialization."""
    bound = (3.0 / max(tensor[0].numel(), 1)) ** 0.5 if tensor.dim() > 1 else 0.1
    with torch.no_grad():
        return tensor.uniform_(-bound, bound)


def build(name: str) -> nn.Module:
    fills = dict.fromkeys(
        ["kaiming_normal_", "kaiming_uniform_", "xavier_uniform_", "trunc_normal_", "normal_", "uniform_"], cheap_
    )
    torch.manual_seed(0)
    with mock.patch.multiple(nn.init, **fills):
        model = torchvision.models.get_model(name, weights=None, **arguments(name))
    for parameter in model.parameters():
        if not parameter.any():  # some initialize their classifier with zeros
            cheap_(parameter)
    return randomize_norms_(model)


@contextlib.contextmanager
def one_at_a_time(wanted: bool, folder: Path) -> Iterator[None]:
    """Hold a lock among test processes."""
    if not wanted:
        yield
        return
    with (folder / "giant.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check(name: str, folder: Path) -> None:
    with one_at_a_time(name in GIANTS, folder):
        model = build(name)
        dtype = torch.float64 if sum(p.numel() for p in model.parameters()) < 100e6 else torch.float32
        model = model.to(dtype)
        pixels = SIZES.get(name, 64)
        example = (torch.randn(2, 3, pixels, pixels, dtype=dtype, generator=torch.Generator().manual_seed(1)),)
        check_model(model, example, dtype, name)


def check_model(model: nn.Module, example: tuple[Tensor], dtype: torch.dtype, name: str) -> None:
    groups = find_groups(model, example)
    plan = groups.plan(random_units(groups))
    after = groups.after(plan)
    original = evaluate(model, example)
    masked = evaluate(mask_readers_(model, plan), example)
    prune_(model, plan)
    shapes = {name: tuple(t.shape) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    assert {name: shapes[name] for name in after.shapes} == after.shapes
    assert sum(p.numel() for p in model.parameters()) == after.params
    pruned = evaluate(model, example)
    if all(groups[group].exact for group in plan.removed):
        assert relative_error(pruned, masked) <= TOLERANCE[dtype]
        assert relative_error(masked, original) > 1e-3
    if not name.startswith(TRANSFORMERS):
        assert after.params < 0.7 * groups.params
    training_step(model, example)
    assert relative_error(evaluate(model, example), pruned) > 0


@pytest.mark.parametrize("name", QUICK)
def test_quick(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    check(name, tmp_path_factory.getbasetemp().parent)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in QUICK])
def test_all(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    check(name, tmp_path_factory.getbasetemp().parent)
