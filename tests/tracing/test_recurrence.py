"""Recurrent layers on fake tensors: one time step stands for all of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.graph import trace

LAYERS = {
    "lstm": nn.LSTM(5, 6),
    "gru": nn.GRU(5, 6),
    "rnn": nn.RNN(5, 6),
    "relu": nn.RNN(5, 6, nonlinearity="relu"),
    "batch first": nn.LSTM(5, 6, batch_first=True),
    "two directions": nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True),
    "without bias": nn.GRU(5, 6, num_layers=2, bias=False, dropout=0.5),
    "projected": nn.LSTM(5, 6, proj_size=3),
}


class Packed(nn.Module):
    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        first = self.layer.batch_first
        packed = pack_padded_sequence(x, torch.full((x.shape[not first],), x.shape[first]), batch_first=first)
        out, states = self.layer(packed)
        return out.data, states


def layouts(result: Any) -> list[Any]:
    out, states = result
    tensors = [out, *(states if isinstance(states, (tuple, list)) else [states])]
    return [(tuple(t.shape), t.stride(), t.dtype, t.requires_grad) for t in tensors]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("name", LAYERS)
def test_results_lie_in_memory_as_those_of_all_time_steps(name, packed) -> None:
    network = Packed(LAYERS[name]) if packed else LAYERS[name]
    x = torch.randn(4, 7, 5)
    out, *states = (node.meta["val"] for node in trace(network, Call("", (x,))).outputs)
    assert layouts((out, states)) == layouts(network(x))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_a_long_sequence_runs_as_many_operators_as_a_short_one(monkeypatch, packed) -> None:
    calls, dispatch = Counter(), FakeTensorMode.dispatch
    network = Packed(LAYERS["lstm"]) if packed else LAYERS["lstm"]
    for length in (4, 40):
        monkeypatch.setattr(FakeTensorMode, "dispatch", lambda *a, n=length: calls.update([n]) or dispatch(*a))
        trace(network, Call("", (torch.randn(length, 2, 5),)))
    assert 0 < calls[40] <= calls[4]
