"""What errors say in a record, on whatever machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from recipes.benchmarks.coverage_messages import describe, shorten

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "short"),
    [
        pytest.param(f"{ROOT}/recipes/data.py:3", "recipes/data.py:3", id="this repository"),
        pytest.param("in /a/b/site-packages/torch/nn/x.py:3", "in torch/nn/x.py:3", id="a library"),
        pytest.param("a/b is c", "a/b is c", id="no path of a machine"),
    ],
)
def test_paths_are_cut_short(text: str, short: str) -> None:
    assert shorten(text) == short


def test_error_says_what_and_where() -> None:
    with pytest.raises(RuntimeError) as caught:
        nn.Linear(2, 2)(torch.zeros(3))
    described = describe(caught.value)
    assert described["error"].startswith("RuntimeError: ") and described["where"][-1].startswith("torch/nn/")
