"""Labels run over whole networks: ties, locks, roles and costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune.errors import PruningWarning
from lightning_taylor_prune.groups.find import find_groups, groups_of_calls
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.labels.places import AxisRef, Lock, Tie
from lightning_taylor_prune.labels.propagate import Propagation, propagate
from lightning_taylor_prune.labels.runs import run_on_labels
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.graph import trace
from tests.networks import NETWORKS, conv, head


def interpreted(name: str) -> Propagation:
    network = NETWORKS[name]
    return propagate(run_on_labels([trace(network.build(), Call("", network.example()))]))


def found(name: str) -> ChannelGroups:
    network = NETWORKS[name]
    return find_groups(network.build(), network.example())


def axes(groups: ChannelGroups, group: str, role: str) -> set[tuple[str, int]]:
    return {(s.tensor, s.dim) for s in groups[group].slices if s.role == role}


def test_tied_tensors_share_their_labels() -> None:
    names = [axis.tensor for axis in interpreted("tied_weights").axes]
    assert names.count("middle.weight") == 2
    assert "decoder.weight" not in names


def test_runs_on_labels_can_be_used_again() -> None:
    network = NETWORKS["residual"]
    ran = run_on_labels([trace(network.build(), Call("", network.example()))])
    first = propagate(ran)
    tie, lock = Tie(AxisRef(0, 1, 0, 1), AxisRef(0, 0, 0, 1)), Lock(np.array([ran.axes[0].start]), "why")
    propagate(ran, ties=[tie], locks=[lock])
    again = propagate(ran)
    assert (again.roots.tolist(), again.locked) == (first.roots.tolist(), first.locked)


# network, group -> weights that write its channels, weights that read them
ROLES = {
    ("residual", "stem"): ({("stem.weight", 0), ("b.weight", 0)}, {("a.weight", 1), ("head.2.weight", 1)}),
    ("squeeze_excite", "stem"): (
        {("stem.weight", 0), ("excite.weight", 0)},
        {("squeeze.weight", 1), ("last.weight", 1)},
    ),
    ("depthwise_separable", "0"): ({("0.weight", 0), ("2.weight", 0)}, {("5.weight", 1)}),
    ("conv_transpose", "2"): ({("2.weight", 1)}, {("5.weight", 1)}),
    ("dense_concat", "a"): ({("a.weight", 0)}, {("b.weight", 1), ("head.2.weight", 1)}),
    ("functional_conv", "kernel_a"): ({("kernel_a", 0), ("kernel_b", 0)}, {("kernel_c", 1)}),
    ("weight_norm", "0"): (
        {("0.parametrizations.weight.original0", 0)},
        {("2.parametrizations.weight.original1", 1)},
    ),
    ("spectral_norm", "0"): (
        {("0.parametrizations.weight.original", 0)},
        {("2.parametrizations.weight.original", 1)},
    ),
    ("tied_transposed", "encoder"): (set(), {("encoder.weight", 0)}),
    ("in_place_copy_into_empty", "stem"): ({("stem.weight", 0)}, {("last.weight", 1)}),
    ("attention_qkv_by_head_width", "qkv"): ({("qkv.weight", 0)}, {("project.weight", 1)}),
    ("embedding", "table"): ({("table.weight", 1)}, {("last.weight", 1)}),
    ("einsum", "weight"): ({("weight", 1)}, {("mixing", 0)}),
}


@pytest.mark.parametrize(("name", "group"), ROLES, ids=lambda value: value)
def test_who_writes_and_who_reads(name: str, group: str) -> None:
    groups = found(name)
    assert (axes(groups, group, "writer"), axes(groups, group, "reader")) == ROLES[name, group]


def test_norm_parameters_are_neither_writer_nor_reader() -> None:
    tensors = {name for name, _ in axes(found("conv_bn"), "0", "affine")}
    assert tensors == {"1.weight", "1.bias", "1.running_mean", "1.running_var"}


def test_positions_and_units_of_a_flattened_channel() -> None:
    reader = next(s for s in found("flatten_to_linear")["0"].slices if s.role == "reader")
    assert (reader.positions.tolist(), reader.units.tolist()) == (list(range(40)), [i // 4 for i in range(40)])


def test_groups_are_ordered_by_execution_not_by_name() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.z, self.m, self.a = conv(3, 4), conv(4, 6), conv(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.m(self.z(x)))

    assert [g.name for g in find_groups(Backwards(), torch.randn(1, 3, 4, 4))] == ["z", "m"]


def test_layers_with_several_families_are_numbered() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.one, self.two = conv(3, 12), conv(6, 4), conv(6, 4)
            self.stop = nn.Parameter(torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            x = self.both(x)
            cut = len(self.stop)
            return self.one(x[:, :cut] + self.stop[:, None, None]) + self.two(x[:, cut:])

    groups = find_groups(Half(), torch.randn(1, 3, 4, 4))
    assert [(g.name, g.num_channels) for g in groups] == [("both", 6), ("both#2", 6)]


def test_ways_of_calling_are_tied_together() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.a, self.b = conv(3, 8), conv(8, 4), conv(8, 4)

        def forward(self, x: Tensor, second: bool = False) -> Tensor:
            return (self.b if second else self.a)(self.body(x))

    model, x = TwoHeads(), torch.randn(1, 3, 4, 4)
    once = axes(find_groups(model, x), "body", "reader")
    both = axes(groups_of_calls(model, [Call("", (x,)), Call("", (x, True))]), "body", "reader")
    assert (once, both) == ({("a.weight", 1)}, {("a.weight", 1), ("b.weight", 1)})


def test_parameters_that_are_not_used_are_locked_for_that_reason() -> None:
    locked = interpreted("never_called").locked
    assert any("is not used in the forward pass" in reason for reason in locked.values())


def test_a_mode_that_cannot_be_traced_is_skipped_with_a_warning() -> None:
    class OnlyTrains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = conv(3, 8), head(8)

        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                raise RuntimeError("not meant for that")
            return self.last(self.body(x))

    with pytest.warns(PruningWarning, match="evaluation mode was not analysed: .*not meant for that"):
        groups = find_groups(OnlyTrains(), torch.randn(1, 3, 4, 4))
    assert [g.name for g in groups] == ["body"]


class ReturnsFeatures(nn.Module):
    """Returns what it computes with, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.first(x).relu()
        return {"features": h, "logits": self.last(h)}


def test_an_output_that_the_network_reads_is_named_with_what_to_do() -> None:
    reasons = {entry.name: entry.reason for entry in find_groups(ReturnsFeatures(), torch.zeros(2, 4)).locked}
    assert "`features`" in reasons["first"] and "returns only what is used" in reasons["first"]
    assert reasons["last"] == "is an output of the network"
