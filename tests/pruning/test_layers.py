"""Layers that arguments name: by name, pattern, class, and through the modules around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_taylor_prune import ArgumentError, Pruner, TaylorPruningCallback, find_groups, select
from tests.lightning_modules import Classifier, loader, trainer


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.relu(self.inner(x)))


class Net(nn.Module):
    """A stream that `stem` and both blocks write, what is inside of the blocks, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 1), nn.Sequential(Block(), Block())
        self.hidden, self.head = parametrizations.weight_norm(nn.Linear(8, 10)), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.blocks(self.stem(x)).mean((2, 3)))))


GROUPS = find_groups(Net(), torch.zeros(2, 3, 4, 4))
STREAM, FIRST, SECOND, HIDDEN = "stem", "blocks.0.inner", "blocks.1.inner", "hidden"


def touched(**options: Any) -> set[str]:
    return set(select(GROUPS, torch.rand(GROUPS.num_units), GROUPS.num_units, **options).removed)


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ({"include": ["hidden"]}, {HIDDEN}),
        ({"include": ["blocks"]}, {FIRST, SECOND}),
        ({"include": ["blocks", "stem"]}, {STREAM, FIRST, SECOND}),
        ({"include": ["blocks.?.inner"]}, {FIRST, SECOND}),
        ({"include": [nn.Conv2d]}, {STREAM, FIRST, SECOND}),
        ({"include": [nn.Linear]}, {HIDDEN}),
        ({"include": [Block, "hidden"]}, {FIRST, SECOND, HIDDEN}),
        ({"include": [nn.Module]}, {STREAM, FIRST, SECOND, HIDDEN}),
        ({"include": [nn.Conv2d], "exclude": ["blocks.0.inner"]}, {STREAM, SECOND}),
        ({"exclude": [nn.Conv2d]}, {HIDDEN}),
        ({"exclude": [Block]}, {HIDDEN}),
        ({"exclude": (nn.Linear, "blocks.1.*")}, {FIRST}),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_only_what_is_allowed_loses_filters(options: dict[str, Any], groups: set[str]) -> None:
    assert touched(**options) == groups


@pytest.mark.parametrize(
    ("ratio", "kept"),
    [
        ({"hidden": 0.5}, {STREAM: 1, FIRST: 1, HIDDEN: 5}),
        ({"*": 0.5, "blocks.0.*": 0.25}, {STREAM: 6, FIRST: 5, SECOND: 3, HIDDEN: 5}),
        ({nn.Conv2d: 0.5, "*": 1.0}, {STREAM: 4, FIRST: 3, HIDDEN: 1}),
        ({"blocks.1": 0.5, "hidden": 1.0}, {STREAM: 4, FIRST: 1, SECOND: 3, HIDDEN: 1}),
    ],
    ids=str,
)
def test_smallest_ratio_of_those_that_match_counts(ratio: Any, kept: dict[str, int]) -> None:
    after = GROUPS.after(select(GROUPS, torch.rand(GROUPS.num_units), GROUPS.num_units, max_pruning_ratio=ratio))
    assert {name: after[name].num_channels for name in kept} == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": ["conv9"]}, "`include` to name layers, but 'conv9' matches none of"),
        ({"include": [nn.LSTM]}, "`include` to name layers, but LSTM matches none of"),
        ({"exclude": [nn.LSTM]}, "`exclude` to name layers, but LSTM matches none of"),
        ({"max_pruning_ratio": {"conv9": 0.5}}, "`max_pruning_ratio` to name layers, but 'conv9' matches"),
        (
            {"include": ["stem"]},
            "tied to those of blocks.0.outer, blocks.1.outer: include these as well",
        ),
        ({"include": ["head"]}, "has none: see `groups.locked`"),
        ({"include": []}, "that is not empty, or None"),
        ({"include": "stem"}, "`include` to be a list of names, patterns or classes of modules, but got 'stem'"),
        ({"exclude": [nn.ReLU()]}, "`exclude` to be a list of names, patterns or classes"),
        ({"exclude": [int]}, "`exclude` to be a list of names, patterns or classes"),
        ({"max_pruning_ratio": {"stem": 2}}, r"`max_pruning_ratio\['stem'\]` to be a number in \(0, 1\], but got 2"),
        ({"max_pruning_ratio": {3: 0.5}}, "dict from names, patterns or classes of modules to fractions"),
        ({"max_pruning_ratio": "half"}, r"`max_pruning_ratio` to be a number in \(0, 1\], but got 'half'"),
    ],
    ids=str,
)
def test_wrong_layers_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        select(GROUPS, torch.rand(GROUPS.num_units), 1, **options)
    with pytest.raises(ArgumentError, match=message):
        Pruner(Net(), torch.zeros(2, 3, 4, 4), **options)


def test_classes_and_ratios_by_layer_go_through_a_checkpoint(tmp_path: Any) -> None:
    options: dict[str, Any] = {"include": [nn.Conv2d], "max_pruning_ratio": {nn.Conv2d: 0.5, "network.0": 0.25}}
    callback = TaylorPruningCallback(every_n_steps=1, filters_per_prune=3, max_prunes=None, **options)
    module = Classifier()
    with pytest.warns(UserWarning, match="nothing is left to prune"):
        trainer(callback).fit(module, loader())
    torch.save(callback.state_dict(), tmp_path / "state")
    limits = torch.load(tmp_path / "state", weights_only=True)["arguments"]["limits"]
    assert limits["include"] == ["torch.nn.modules.conv.Conv2d"]
    assert limits["max_pruning_ratio"] == {"torch.nn.modules.conv.Conv2d": 0.5, "network.0": 0.25}
    assert (module.network[0].out_channels, module.network[3].out_channels) == (6, 8)
