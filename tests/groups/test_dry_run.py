"""Code that hard-codes sizes is found before anything is changed, and named by operator and line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune.errors import VerificationError
from lightning_taylor_prune.groups import recorded_calls
from lightning_taylor_prune.groups.analysis import Analysis
from lightning_taylor_prune.groups.changes import CodeChanges
from lightning_taylor_prune.groups.dry_run import DryRun
from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.labels.propagate import propagate
from lightning_taylor_prune.labels.runs import run_on_labels
from lightning_taylor_prune.pruning.prune import prune_
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.graph import trace
from tests.networks import NETWORKS, conv
from tests.oracles import differences, mask_readers_, prepared, relative_error, state_of


class Middle(nn.Module):
    """Twelve channels between two convolutions, with a function of the user's in the middle."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.first, self.last, self.function = conv(3, 12), conv(width, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def build(function: Callable[[Tensor], Tensor]) -> Middle:
    torch.manual_seed(0)
    return Middle(function, function(torch.zeros(1, 12, 4, 4)).shape[1]).double().eval()


def images() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()


def unprobed(model: nn.Module) -> ChannelGroups:
    """Return groups as the labels alone have them, before the network's own code was asked."""
    call = Call("", (images(),))
    traces = [trace(model, call)]
    structure = Structure.of(propagate(run_on_labels(traces)))
    return ChannelGroups(Analysis.of(structure, CodeChanges(), DryRun(traces), [call]))


def assigned(width: int) -> Tensor:
    table = torch.ones(2)
    table[0] = 1 / width
    return table[0]


def interleave(x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    return torch.cat([x[:, :half].tanh(), x[:, half:]], 1)


# Functions whose sizes only sometimes contradict: name -> function
SLIPPERY: dict[str, Callable[[Tensor], Tensor]] = {
    "half": interleave,
    "quarter": lambda x: torch.cat([x[:, : x.shape[1] // 4].tanh(), x[:, x.shape[1] // 4 :]], 1),
    "last_third": lambda x: torch.cat([x[:, -(x.shape[1] // 3) :].tanh(), x[:, : -(x.shape[1] // 3)]], 1),
    "at_least_eight": lambda x: torch.cat([x[:, : max(8, x.shape[1] // 2)].tanh(), x[:, max(8, x.shape[1] // 2) :]], 1),
    "first_eight": lambda x: torch.cat([x[:, :8].tanh(), x[:, 8:]], 1),
    "but_two": lambda x: torch.cat([x[:, :-2].tanh(), x[:, -2:]], 1),
    "window": lambda x: torch.cat([x[:, 3:9].tanh(), x[:, :3], x[:, 9:]], 1),
    "strided_window": lambda x: torch.cat([x[:, 4::2], x[:, 5::2].tanh()], 1),
    "chunks_of_five": lambda x: torch.cat([t.tanh() if i else t for i, t in enumerate(x.split(5, 1))], 1),
    "three_chunks": lambda x: torch.cat([t.tanh() if i else t for i, t in enumerate(x.chunk(3, 1))], 1),
    "eleventh": lambda x: x + x[:, 10:11],
    "one_over_width": lambda x: x / x.shape[1],
    "width_as_power": lambda x: x.tanh() ** x.shape[1],
    "sum_over_width": lambda x: x + x.sum(1, keepdim=True) / x.shape[1] ** 0.5,
    "width_in_a_tensor": lambda x: x * torch.tensor(1 / x.shape[1]),
    "width_in_a_new_tensor": lambda x: x * x.new_tensor([x.shape[1] ** -0.5]),
    "width_as_tensor": lambda x: x / torch.as_tensor(x.shape[1]),
    "width_fills": lambda x: x * torch.full((), 1 / x.shape[1]),
    "width_assigned": lambda x: x * assigned(x.shape[1]),
    "width_in_an_array": lambda x: x * torch.from_numpy(np.array(1 / x.shape[1])),
    "width_fills_an_array": lambda x: x * torch.from_numpy(np.full((x.shape[1], 1, 1), 1 / x.shape[1])),
    "width_read_again": lambda x: x / torch.tensor(float(x.shape[1])).item(),
    "other_path": lambda x: x.tanh() if x.shape[1] >= 12 else x.relu(),
    "round_up": lambda x: F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % 4)),
    "pad_to_sixteen": lambda x: F.pad(x, (0, 0, 0, 0, 16 - x.shape[1], 0)),
    "pad_both_sides": lambda x: F.pad(x, (0, 0, 0, 0, (20 - x.shape[1]) // 2, (21 - x.shape[1]) // 2)),
    "groups_of_three": lambda x: x.view(x.shape[0], -1, 3, 4, 4).softmax(2).flatten(1, 2),
    "three_groups": lambda x: x.view(x.shape[0], 3, -1, 4, 4).transpose(1, 2).flatten(1, 2),
    "folded_into_batch": lambda x: F.max_pool2d(x.reshape(-1, 1, 4, 4), 3, 1, 1).view(x.shape),
    "regrouped": lambda x: F.conv2d(x, torch.ones(x.shape[1], 1, 3, 3).to(x), padding=1, groups=x.shape[1]),
    "alternating": lambda x: x * torch.tensor([1.0, -1.0]).repeat(x.shape[1] // 2).view(-1, 1, 1).to(x),
    "twice_or_once": lambda x: x.repeat(1, 2 if x.shape[1] > 8 else 1, 1, 1)[:, : x.shape[1]],
}

PATTERNS = {
    "first": [0],
    "last": [11],
    "first_two": [0, 1],
    "one_of_each_half": [2, 8],
    "first_four": [0, 1, 2, 3],
    "last_four": [8, 9, 10, 11],
    "scattered": [1, 4, 6, 11],
    "all_but_one": list(range(1, 12)),
}


@pytest.mark.parametrize("probed", [True, False], ids=["probed", "labels_alone"])
@pytest.mark.parametrize("name", SLIPPERY)
def test_sizes_in_code_are_right_or_refused(name: str, probed: bool) -> None:
    """Even labels that were never probed must not lead to a wrong network: every cut is verified by itself."""
    outcomes = []
    for pattern in PATTERNS.values():
        model, masked = build(SLIPPERY[name]), build(SLIPPERY[name])
        groups = find_groups(model, images()) if probed else unprobed(model)
        removed = {g.name: sorted({u % g.num_channels for u in pattern})[: g.num_channels - 1] for g in groups}
        plan, before = groups.plan(removed), state_of(model)
        try:
            prune_(model, plan)
        except VerificationError:
            assert differences(before, state_of(model)) == []
            outcomes.append("refused")
        else:
            exact = all(groups[group].exact for group in plan.removed)
            error = relative_error(model(images()), mask_readers_(masked, plan)(images()))
            assert error < 1e-10 or not exact
            outcomes.append("right")
    assert not probed or name in STILL_REFUSED or "refused" not in outcomes


# Where code counts in a way that some plans fit and others do not, and probing found none that does not.
STILL_REFUSED: set[str] = set()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: torch.cat([x[:, 8:], x[:, :8]], 1),
            r"expected start of the slice 7 after pruning, got 8 \(aten.slice, .*\.py:\d+\)",
        ),
        (
            lambda x: x[:, :8],
            r"expected shape \(2, 7, 4, 4\) after pruning, got \(2, 8, 4, 4\) \(aten.slice, .*\.py:\d+\)",
        ),
        (
            lambda x: x.reshape(-1, 12, 16).view(-1, 12, 4, 4),
            r"RuntimeError: shape .* is invalid .*\(aten.reshape, .*:\d+\)",
        ),
        (lambda x: x / x.shape[1], r"expected the number 12 after pruning, got 11 \(aten.div, .*\.py:\d+\)"),
        (
            lambda x: x.tanh() if x.shape[1] == 12 else x.relu(),
            r"calls aten.relu once they are removed.*\(aten.tanh, .*\.py:\d+\)",
        ),
        (lambda x: x if x.shape[1] == 12 else x.relu(), r"calls aten.relu once they.*\(aten.conv2d, .*\.py:\d+\)"),
        (lambda x: x.relu() if x.shape[1] == 12 else x, r"calls aten.conv2d once they.*\(aten.relu, .*\.py:\d+\)"),
    ],
    ids=["start", "shape", "error", "number", "other_operator", "more_operators", "fewer_operators"],
)
def test_the_message_says_what_where_and_that_nothing_changed(
    function: Callable[[Tensor], Tensor], message: str
) -> None:
    model = build(function)
    groups = unprobed(model)
    with pytest.raises(VerificationError, match=message + r".*Nothing was changed") as caught:
        prune_(model, groups.plan({"first": [0]}))
    assert caught.value.divergence.site[0] == 0


def test_code_that_catches_the_error_does_not_hide_it() -> None:
    def stubborn(x: Tensor) -> Tensor:
        try:
            return x[:, :8]
        except Exception:
            return x

    model = build(stubborn)
    with pytest.raises(VerificationError, match="hard-codes a size"):
        prune_(model, unprobed(model).plan({"first": [0]}))


@pytest.mark.parametrize("name", NETWORKS)
def test_verifying_changes_nothing(name: str) -> None:
    network = NETWORKS[name]
    model, _, groups = prepared(network.build(), network.example(), torch.float32)
    plan = groups.plan({g.name: [0] for g in groups if g.num_channels > 1})
    before: Any = state_of(model)
    groups.verify(model, plan)
    assert differences(before, state_of(model)) == []


def test_a_second_verification_runs_only_operators_whose_operands_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(torch.relu)
    groups = find_groups(model, images())
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return torch.ops.aten.conv2d.default(*args, **kwargs)

    monkeypatch.setitem(recorded_calls._SHORT_CUTS, torch.ops.aten.conv2d.default, counted)
    runs = []
    for removed in ([0, 3], [0, 3], [5]):
        assert groups.verify(model, groups.plan({"first": removed})) is None
        runs.append(len(calls))
    assert runs == [2, 2, 4]


def test_a_shape_that_changes_in_place_is_not_replayed() -> None:
    model = build(lambda x: x.tanh().unsqueeze_(0).flatten(0, 1))
    groups = find_groups(model, images())
    assert [groups.verify(model, groups.plan({"first": [0]})) for _ in range(2)] == [None, None]
