"""Garbage collection during an analysis."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_taylor_prune.groups import find


def test_full_collections_wait_until_the_analysis_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, int]] = []
    before, trace_paths = gc.get_threshold(), find.trace_paths
    monkeypatch.setattr(find, "trace_paths", _noting(trace_paths, seen))
    find.find_groups(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.zeros(2, 4))
    assert gc.get_threshold() == before
    assert [(young, middle) for young, middle, _ in seen] == [before[:2]] and seen[0][2] > 10**6


def _noting(function: Callable[..., Any], seen: list[tuple[int, int, int]]) -> Callable[..., Any]:
    def noted(*args: Any) -> Any:
        seen.append(gc.get_threshold())
        return function(*args)

    return noted
