from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

from recipes.benchmarks import latency


@pytest.fixture
def tiny(monkeypatch):
    """The benchmark's network is a small one, and its clock stands still."""

    def build(name):
        model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 4, 1))
        return model.eval(), torch.zeros(1, 3, 4, 4), True

    monkeypatch.setattr(latency, "build", build)
    monkeypatch.setattr(latency, "milliseconds", lambda model, images: 1.0)


def test_times_are_compared_at_every_size(tiny, tmp_path):
    found = latency.predictions("resnet18", tmp_path, 0.1)
    assert [(r["removed"], r["measured"]) for r in found] == [(0.0, 1.0), (0.3, 1.0), (0.5, 1.0)]


def test_half_of_the_macs_are_left_whatever_chooses(tiny, tmp_path):
    found = latency.bar(tmp_path, 0.1)
    assert [r["how"] for r in found] == list(latency.WAYS)
    assert all(0.5 <= r["macs"] < 0.8 for r in found)


def test_run_that_was_ended_goes_on(monkeypatch, tmp_path):
    asked = []
    record = {"network": "vit_b_16", "removed": 0.3, "macs": 0.5, "predicted": 9.0, "measured": 10.0}
    monkeypatch.setattr(latency, "in_a_process", lambda what, args: asked.append(what) or [record])
    args = Namespace(out=tmp_path, report=tmp_path / "latency.md", seconds=1.0, threads=1, fresh=False, only=None)
    args.networks = ["vit_b_16"]
    monkeypatch.setattr(latency, "parse", lambda: args)
    latency.main()
    latency.main()
    assert (asked, json.loads((tmp_path / "records.json").read_text())) == (["vit_b_16"], {"vit_b_16": [record]})
    assert "| vit_b_16 | 30% | 50.0% | 9.0 | 10.0 | -10.0% |" in Path(args.report).read_text()


def test_share_of_the_gain(tmp_path):
    row = latency.bar_row({"how": "x", "macs": 0.5, "before": 10.0, "predicted": 6.0, "measured": 6.0})
    assert row.endswith("| 80.0% |")
