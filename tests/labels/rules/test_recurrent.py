"""Recurrent layers and cells: a hidden unit is position i of every gate and of the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_taylor_prune.groups.find import find_groups
from tests.labels.rules.laws import Labelled, check_removal, randn
from tests.networks import NETWORKS

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@settings(max_examples=30)
@given(st.data())
def test_removing_inputs_hidden_units_and_examples_is_zeroing_them(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(GATES)))
    layers, two_ways, batch_first = data.draw(st.integers(1, 2)), data.draw(st.booleans()), data.draw(st.booleans())
    projected = kind == "lstm" and data.draw(st.booleans())
    inputs, hidden, state, rows = 4, 4, 2 if projected else 4, GATES[kind] * 4
    directions = 1 + two_ways
    weights: list[Tensor] = []
    for layer in range(layers):
        for _ in range(directions):
            into = inputs if layer == 0 else directions * state
            weights += [randn(rows, into), randn(rows, state), randn(rows), randn(rows)]
            weights += [randn(state, hidden)] * projected

    def function(x: Tensor, h: Tensor, c: Tensor, *params: Tensor) -> Any:
        states: Any = (h, c) if kind == "lstm" else h
        return getattr(torch, kind)(x, states, params, True, layers, 0.0, False, two_ways, batch_first)

    x = randn(2, 5, inputs) if batch_first else randn(5, 2, inputs)
    h, c = randn(layers * directions, 2, state), randn(layers * directions, 2, hidden)
    expected = inputs + state + hidden * projected + 2
    found = check_removal(function, [x, h, c, *weights])
    assert found == expected if kind == "lstm" else found >= expected


CELLS: dict[str, Callable[..., Any]] = {
    "lstm_cell": lambda x, h, c, *p: torch.lstm_cell(x, (h, c), *p),
    "gru_cell": lambda x, h, c, *p: torch.gru_cell(x, h, *p),
    "rnn_tanh_cell": lambda x, h, c, *p: torch.rnn_tanh_cell(x, h, *p),
    "rnn_relu_cell": lambda x, h, c, *p: torch.rnn_relu_cell(x, h, *p),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_loses_what_it_reads_and_its_hidden_units(name: str) -> None:
    rows = 3 * GATES[name.removesuffix("_cell")]
    states = [randn(2, 3), randn(2, 3)]
    parameters = [randn(rows, 4), randn(rows, 3), randn(rows), randn(rows)]
    unused = 0 if name == "lstm_cell" else 3 + 2  # the cell state's own axes, which nothing ties
    used = check_removal(CELLS[name], [randn(2, 4), *states, *parameters])
    assert used in (4 + 3 + 2, 4 + 3 + 2 + unused)


def test_times_are_locked() -> None:
    def function(x: Tensor, h: Tensor, a: Tensor, b: Tensor) -> Any:
        return torch.gru(x, h, (a, b), False, 1, 0.0, False, False, False)

    labelled = Labelled(function, [randn(5, 2, 4), randn(1, 2, 3), randn(9, 4), randn(9, 3)])
    times = labelled.roots_of(0)[0]
    assert times is not None
    assert all("one after another" in labelled.outcome.locked[int(root)] for root in times)


@pytest.mark.parametrize(
    ("network", "readers"),
    [
        ("lstm_after_conv", {("lstm.weight_hh_l0", 1), ("last.weight", 1)}),
        (
            "lstm_encoder_decoder",
            {("encoder.weight_hh_l0", 1), ("decoder.weight_hh_l0", 1), ("last.weight", 1)},
        ),
    ],
)
def test_hidden_units_are_read_by_the_gates_and_by_who_uses_the_output(network: str, readers: set[Any]) -> None:
    found = NETWORKS[network]
    group = next(g for g in find_groups(found.build(), found.example()) if g.num_channels == 6)
    assert {(s.tensor, s.dim) for s in group.slices if s.role == "reader"} == readers


class Packed(nn.Module):
    """Returns what is packed: its width must not change."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(5, 8), nn.LSTM(8, 6)

    def forward(self, x: Tensor, lengths: Any) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(x), lengths)
        return self.lstm(packed)[0].data


@pytest.mark.parametrize("lengths", [[7, 4, 2], torch.tensor([7, 4, 2])], ids=["list", "tensor"])
def test_packed_sequences_are_followed_whatever_their_lengths(lengths: Any) -> None:
    groups = find_groups(Packed(), (torch.randn(7, 3, 5), lengths))
    assert [(g.name, g.num_channels) for g in groups] == [("embed", 8)]
    assert [(entry.name, entry.num_channels) for entry in groups.locked] == [("lstm", 48)]
