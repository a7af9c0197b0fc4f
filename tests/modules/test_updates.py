"""Attributes of known modules that hold their shapes follow every cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.modules import updates as registry
from lightning_taylor_prune.modules.reads import recording_reads
from lightning_taylor_prune.modules.updates import attribute_updates, register_module_update
from lightning_taylor_prune.plan import Cut
from lightning_taylor_prune.pruning.prune import prune_
from tests.networks import NETWORKS
from tests.oracles import random_units

# network, module -> the attributes after the first three units of every group are removed
ATTRIBUTES: dict[tuple[str, str], dict[str, Any]] = {
    ("conv_bn", "0"): {"in_channels": 3, "out_channels": 7, "groups": 1},
    ("conv_bn", "3"): {"in_channels": 7, "out_channels": 11, "groups": 1},
    ("conv_bn", "1"): {"num_features": 7},
    ("flatten_to_linear", "5"): {"in_features": 28, "out_features": 9},
    ("grouped", "3"): {"in_channels": 6, "out_channels": 9, "groups": 3},
    ("depthwise_separable", "2"): {"in_channels": 7, "out_channels": 7, "groups": 7},
    ("depthwise_multiplier_2", "2"): {"in_channels": 7, "out_channels": 14, "groups": 7},
    ("conv_transpose", "2"): {"in_channels": 7, "out_channels": 9, "groups": 1},
    ("conv_transpose_grouped", "2"): {"in_channels": 3, "out_channels": 2, "groups": 1},
    ("group_norm_1", "1"): {"num_channels": 9, "num_groups": 1},
    ("group_norm_2", "1"): {"num_channels": 6, "num_groups": 2},
    ("group_norm_6", "1"): {"num_channels": 6, "num_groups": 3},
    ("group_norm_12", "1"): {"num_channels": 9, "num_groups": 9},
    ("layer_norm", "1"): {"normalized_shape": (9,)},
    ("layer_norm_over_images", "1"): {"normalized_shape": (7, 8, 8)},
    ("rms_norm", "1"): {"normalized_shape": (9,)},
    ("instance_norm", "1"): {"num_features": 7},
    ("instance_norm", "4"): {"num_features": 9},
    ("norm_without_affine", "1"): {"num_features": 7},
    ("prelu_per_channel", "1"): {"num_parameters": 7},
    ("prelu_per_channel", "3"): {"num_parameters": 1},
    ("embedding", "table"): {"num_embeddings": 9, "embedding_dim": 9},
    ("weight_norm", "2"): {"in_channels": 7, "out_channels": 9, "groups": 1},
    ("spectral_norm", "2"): {"in_channels": 7, "out_channels": 9, "groups": 1},
    ("lstm_two_directions", "lstm"): {"input_size": 5, "hidden_size": 3, "proj_size": 0},
    ("lstm_projected", "lstm"): {"input_size": 5, "hidden_size": 6, "proj_size": 2},
    ("recurrent_normalised", "gru"): {"input_size": 5, "hidden_size": 3},
    ("recurrent_cells", "gru"): {"input_size": 7, "hidden_size": 4},
    ("conv3d", "0"): {"in_channels": 3, "out_channels": 7, "groups": 1},
}


@pytest.mark.parametrize(("name", "module"), ATTRIBUTES, ids=lambda value: value)
def test_attributes_follow(name: str, module: str) -> None:
    network = NETWORKS[name]
    model, example = network.build(), network.example()
    groups = find_groups(model, example)
    prune_(model, groups.plan({g.name: range(3) for g in groups}))
    found = model.get_submodule(module)
    expected = ATTRIBUTES[name, module]
    assert {key: getattr(found, key) for key in expected} == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_repr_of_a_pruned_network_shows_the_sizes_of_its_tensors(name: str) -> None:
    """Attributes of every module with a weight agree with a module built from them."""
    network = NETWORKS[name]
    model, example = network.build(), network.example()
    groups = find_groups(model, example)
    prune_(model, groups.plan(random_units(groups)))
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
            assert tuple(module.weight.shape) == shape
        elif isinstance(module, nn.Linear):
            assert tuple(module.weight.shape) == (module.out_features, module.in_features)
        elif isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            assert len(module.running_mean) == module.num_features


@pytest.mark.parametrize(
    ("keep", "expected"),
    [([0, 2, 4, 6], 4), ([0, 1, 4, 5], 2), ([2, 3], 1), ([6, 7], 1), ([0, 1, 2, 3, 4, 5], 3), ([1, 3, 5, 7], 4)],
    ids=str,
)
def test_group_norm_tells_whole_groups_from_equal_shares(keep: list[int], expected: int) -> None:
    net = nn.Sequential(nn.GroupNorm(4, 8))
    cuts = [Cut(name, 0, 8, np.array(keep)) for name in ("0.weight", "0.bias")]
    updates = {update.name: update.value for update in attribute_updates(net, cuts)}
    assert updates == {"num_channels": len(keep), "num_groups": expected}


class Gate(nn.Module):
    """Holds its width where only a registered update finds it, and uses it in its own code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.sizes = nn.Parameter(torch.rand(width)), {"width": width}

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(1, self.sizes["width"], 1, 1)


class Slope(Gate):
    pass


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    def update(module: Gate, cuts: Mapping[int, Cut]) -> dict[str, Any]:
        return {"sizes": {"width": len(cuts[0].keep)}}

    yield lambda *types: register_module_update(*types)(update) and None
    registry._UPDATES.pop(Gate, None)


def gated(cls: type[Gate]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), cls(8), nn.Conv2d(8, 4, 3))


@pytest.mark.parametrize("cls", [Gate, Slope], ids=["class", "subclass"])
def test_a_users_update_frees_a_module_that_holds_its_width(register: Callable[..., None], cls: type[Gate]) -> None:
    example = torch.randn(1, 3, 8, 8)
    without = find_groups(gated(cls), example)
    register(Gate)
    model = gated(cls)
    groups = find_groups(model, example)
    prune_(model, groups.plan({"0": [1, 2]}))
    assert (len(without), [g.num_channels for g in groups], model[1].sizes["width"]) == (0, [8], 6)


def test_registering_a_type_twice_raises(register: Callable[..., None]) -> None:
    register(Gate)
    with pytest.raises(ValueError, match="Gate has a module update already"):
        register(Gate)


def test_reads_are_recorded_by_instance() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.depth = 4, 2

    one, two = Sized(), Sized()
    with recording_reads([(m, path) for m in (one, two) for path in ("width", "depth")]) as read:
        one.width += 1
    assert (read, one.width, vars(Sized).keys() & {"width", "depth"}) == ({(id(one), "width")}, 5, set())
