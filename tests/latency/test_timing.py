from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_taylor_prune import find_groups
from lightning_taylor_prune.latency.operators import Operator
from lightning_taylor_prune.latency.program import Program
from lightning_taylor_prune.latency.replay import Layout
from lightning_taylor_prune.latency.sizes import at
from lightning_taylor_prune.latency.timing import Operands, Stopwatch
from tests.networks import NETWORKS

CPU = torch.device("cpu")


def operators(model, *inputs, **layout):
    found = Program.of(find_groups(model, inputs), Layout(**layout), on_cpu=False)
    return [part for part, _, _ in found.parts if isinstance(part, Operator)]


def conv(groups, bias=False):
    return [nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 3, groups=groups, bias=bias), nn.Conv2d(24, 5, 1)]


LAYERS = {
    "convolution": (conv(1), torch.zeros(2, 3, 6, 6)),
    "depthwise": (conv(24), torch.zeros(2, 3, 6, 6)),
    "grouped": (conv(6), torch.zeros(2, 3, 6, 6)),
    "shuffle": ([nn.Conv2d(3, 24, 1), nn.ChannelShuffle(3), nn.Conv2d(24, 5, 1)], torch.zeros(2, 3, 6, 6)),
    "layer_norm": ([nn.Linear(3, 24), nn.LayerNorm(24), nn.Linear(24, 5)], torch.zeros(2, 7, 3)),
    "lstm": ([nn.Linear(3, 8), nn.LSTM(8, 6)], torch.zeros(7, 2, 3)),
}


@pytest.mark.parametrize(("layers", "x"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("share", [1, 2], ids=["unpruned", "halved"])
@torch.inference_mode()
def test_operators_run_at_other_sizes(layers, x, share):
    for part in operators(nn.Sequential(*layers), x):
        units = tuple(n // share for n in part.full)
        (args, kwargs), *_ = Operands(part, units, CPU, {}).arguments(1)
        results = part.target(*args, **kwargs)
        result = results[0] if isinstance(results, (tuple, list)) else results
        assert tuple(result.shape) == at(part.results[0], units)


def test_operands_lie_in_memory_as_in_the_network():
    model = nn.Sequential(*conv(1))
    (part, *_) = operators(model, torch.zeros(2, 3, 6, 6), channels_last=True)
    (((x, weight, *_), _),) = Operands(part, part.full, CPU, {}).arguments(1)
    assert [t.is_contiguous(memory_format=torch.channels_last) for t in (x, weight)] == [True, True]


def test_weights_are_others_every_time_and_inputs_the_same():
    (part, *_) = operators(nn.Sequential(*conv(1)), torch.zeros(2, 3, 6, 6))
    calls = [args for args, _ in Operands(part, part.full, CPU, {}).arguments(3)]
    assert [len({args[i].data_ptr() for args in calls}) for i in (0, 1)] == [1, 3]


def test_operator_that_gives_other_shapes_has_no_time():
    network = NETWORKS["channel_shuffle"]
    parts = operators(network.build(), *network.example())
    part = next(p for p in parts if "aten.reshape" in p.key)
    watch = Stopwatch(CPU, 1, min_run_time=1e-4)
    assert (watch(part, part.full) is None, watch(part, (part.full[0] // 2,)) is None) == (False, True)


def test_measuring_draws_no_random_numbers_of_the_training():
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 2))
    parts = operators(model, torch.zeros(2, 3))
    before = torch.get_rng_state()
    watch = Stopwatch(CPU, 1, min_run_time=1e-4)
    assert all(watch(part, part.full) for part in parts)
    assert torch.equal(torch.get_rng_state(), before)
