"""Results are saved as JSON and loaded again; groups are summed up from a network."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_taylor_prune import find_groups
from lightning_taylor_prune.report import GroupResult, Latency, NetworkResult, Progress, Results, groups_of
from tests.report.examples import example

NETWORK = NetworkResult(params=10, macs=5, filters=2, accuracy=0.5)
LAYERS = {"a": 4, "b": 8}


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    results = example(("cat", "dog"), LAYERS, prunes=2)
    assert Results.load(results.save(tmp_path / "results.json")) == results


def test_file_is_strict_json(tmp_path: Path) -> None:
    progress = Progress([1], [math.inf], [0], [math.nan], [3])
    path = Results("", "", (), NETWORK, NETWORK, progress).save(tmp_path / "results.json")
    values = json.loads(path.read_text(), parse_constant=pytest.fail)["progress"]
    assert values["losses"] == values["accuracies"] == [None]


def test_what_was_not_measured_comes_back_as_nan(tmp_path: Path) -> None:
    unknown = replace(NETWORK, accuracy=math.nan)
    path = Results("", "", (), NETWORK, unknown, Progress([1], [1.0], [0], [math.nan], [3])).save(tmp_path / "r.json")
    loaded = Results.load(path)
    assert loaded.progress is not None
    assert math.isnan(loaded.progress.accuracies[0]) and math.isnan(loaded.pruned.accuracy)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list], ids=["tensor", "array", "lists"])
def test_confusion_is_taken_from(kind) -> None:  # type: ignore[no-untyped-def]
    assert replace(NETWORK, confusion=kind([[3, 1], [0, 2]])).confusion == ((3, 1), (0, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ("a", "b", "c")}, "matrix of 3 classes.*original network has 2"),
        ({"pruned": NETWORK}, "same layers.* a, b"),
    ],
    ids=["classes", "layers"],
)
def test_results_that_contradict_themselves_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(example(("cat", "dog"), LAYERS, prunes=2), **change)


def test_oblong_confusion_is_refused() -> None:
    with pytest.raises(ValueError, match="2 rows of length 3"):
        replace(NETWORK, confusion=[[1, 2, 3], [4, 5, 6]])


def test_latency_sums_up_passes() -> None:
    latency = Latency.of([0.001 * i for i in range(1, 12)], 8, "CPU")
    assert (latency.median_ms, latency.low_ms, latency.high_ms) == pytest.approx((6, 2, 10))
    assert latency.repeats == 11


def test_groups_before_and_after() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 2))
    groups = find_groups(network, torch.zeros(1, 3, 8, 8))
    pruned = groups.after(groups.plan({"0": [1, 4]}))
    assert groups_of(pruned) == (GroupResult("0", ("0",), 6, 4), GroupResult("2", ("2",), 4, 4))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x + self.block(x))


def test_coupled_layers_are_named() -> None:
    groups = find_groups(Residual(), torch.zeros(1, 3, 8, 8))
    assert groups_of(groups) == (GroupResult("stem", ("stem", "block"), 6, 6),)
