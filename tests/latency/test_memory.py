from __future__ import annotations

import torch
from torch import nn

from lightning_taylor_prune import find_groups
from lightning_taylor_prune.latency.memory import Memory
from lightning_taylor_prune.latency.program import Program
from lightning_taylor_prune.latency.replay import Layout

MIB = 2**20


def memory(model, x):
    parts = Program.of(find_groups(model, x), Layout(), on_cpu=True).parts
    return next(part for part, _, _ in parts if isinstance(part, Memory))


def test_most_memory_at_once_is_an_input_and_an_output():
    model = nn.Sequential(nn.Conv2d(1, 16, 1), nn.ReLU(inplace=True), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 2, 1))
    found = memory(model, torch.zeros(1, 1, 128, 128))
    assert found.work(found.full) == (16 + 8) * 128 * 128 * 4


def test_memory_shrinks_with_the_channels():
    model = nn.Sequential(nn.Conv2d(1, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 1, 1))
    found = memory(model, torch.zeros(1, 1, 128, 128))
    assert found.work((8, 4)) == (8 + 4) * 128 * 128 * 4


def test_what_is_taken_is_given_back():
    model = nn.Sequential(nn.Conv2d(1, 16, 1), nn.BatchNorm2d(16), nn.Flatten())
    taken = memory(model, torch.zeros(1, 1, 128, 128))
    assert sum(size if kind else -size for kind, _, size in taken._events(taken.full)) == 0
    taken.call(taken.full)()
