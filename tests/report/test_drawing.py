"""Boxes of a drawing: layers and joins in the order of execution, and whose channels they give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune import find_groups, prune_
from lightning_taylor_prune.report.drawing import NO_GROUP, TIMES, Box, Part, boxes_of
from tests.networks import NETWORKS


def boxes(name: str) -> tuple[Box, ...]:
    network = NETWORKS[name]
    return boxes_of(find_groups(network.build(), network.example()))


def test_chain_of_layers() -> None:
    found = boxes("conv_bn")
    assert [(box.name, box.kind, box.channels, box.inputs) for box in found] == [
        ("", "input", 0, ()),
        ("0", f"conv 3{TIMES}3", 10, (0,)),
        ("3", f"conv 3{TIMES}3", 14, (1,)),
        ("6.2", "linear", 5, (2,)),
        ("", "output", 0, (3,)),
    ]


def test_residual_joins_both_sides() -> None:
    found = boxes("residual")
    joins = [box for box in found if box.kind == "add"]
    assert joins and all(len(box.inputs) == 2 for box in joins)


def test_channels_belong_to_groups_and_locks() -> None:
    """Half of the channels are padding of an option-A shortcut, on both sides."""
    found = next(box for box in boxes("option_a_constant") if box.kind == "add")
    before, middle, after = found.parts
    assert (before.group, before.channels, middle.group, middle.channels, after.channels) == (NO_GROUP, 4, 0, 8, 4)
    assert "padding of a fixed width" in before.reason and middle.reason == ""


def test_output_is_locked() -> None:
    assert boxes("conv_bn")[3].parts == (Part(NO_GROUP, 5, "is an output of the network"),)


def test_concatenation_shows_all_groups() -> None:
    class Concatenating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(10, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.c(torch.cat([self.a(x), self.b(x)], 1))
            return result

    found = boxes_of(find_groups(Concatenating(), torch.zeros(1, 3, 4, 4)))
    assert (found[3].kind, found[3].parts, found[3].inputs) == ("concat", (Part(0, 4), Part(1, 6)), (1, 2))


@pytest.mark.parametrize(
    ("layer", "size", "kind"),
    [
        (nn.Conv2d(4, 8, (3, 5), stride=2), (1, 4, 9, 9), f"conv 3{TIMES}5 stride 2"),
        (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 9, 9), f"conv 3{TIMES}3 depthwise"),
        (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 9, 9), f"conv 3{TIMES}3 2 groups"),
        (nn.Conv1d(4, 8, 3), (1, 4, 9), "conv 3"),
        (nn.ConvTranspose2d(4, 8, 2, stride=2), (1, 4, 9, 9), f"transposed conv 2{TIMES}2 stride 2"),
        (nn.Linear(4, 8), (1, 4), "linear"),
    ],
    ids=str,
)
def test_layers_are_named_for_what_they_do(layer: nn.Module, size: tuple[int, ...], kind: str) -> None:
    assert boxes_of(find_groups(layer, torch.zeros(size)))[1].kind == kind


def test_pruned_network_shows_what_is_kept() -> None:
    network = NETWORKS["conv_bn"]
    model = network.build()
    groups = prune_(model, find_groups(model, network.example()).plan({"3": [0, 1, 2]}))
    assert [box.channels for box in boxes_of(groups)] == [0, 10, 11, 5, 0]


@pytest.mark.filterwarnings("ignore::lightning_taylor_prune.errors.PruningWarning")
@pytest.mark.parametrize("name", sorted(NETWORKS)[::9])
def test_networks_of_all_kinds_can_be_drawn(name: str) -> None:
    found = boxes(name)
    assert all(source < number for number, box in enumerate(found) for source in box.inputs)
    assert found[-1].kind == "output" and all(part.channels > 0 for box in found for part in box.parts)
