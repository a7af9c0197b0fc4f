"""Recording a forward pass: what is recorded, and that the network is unchanged afterwards."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune.errors import TraceError
from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.labels.rules import operator_name
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.graph import trace
from lightning_taylor_prune.tracing.recorder import Trace, training_flags
from tests.networks import NETWORKS, conv
from tests.oracles import differences, state_of


def record(name: str) -> Trace:
    network = NETWORKS[name]
    return trace(network.build(), Call("", network.example()))


def test_operators_are_recorded_before_decomposition() -> None:
    names = [operator_name(node.target).removeprefix("aten.") for node in record("flatten_to_linear").ops]
    expected = "conv2d batch_norm relu max_pool2d flatten linear relu linear"
    assert " ".join(n for n in names if n != "add") == expected


def test_nodes_know_shape_line_and_module() -> None:
    node = next(n for n in record("residual").ops if n.meta["module"] == "a")
    assert node.meta["shapes"] == [(2, 10, 8, 8)]
    assert "networks.py:" in node.meta["source"]


def test_code_that_is_all_torchs_own_has_no_line() -> None:
    assert {node.meta["source"] for node in record("sequential").ops} == {""}


def test_shapes_are_those_before_later_in_place_operators() -> None:
    pooled = next(n for n in record("squeeze_in_place").ops if "pool" in str(n.target))
    assert pooled.meta["shapes"] == [(2, 12, 1, 1)]


def test_no_memory_is_held() -> None:
    found = record("conv_bn")
    values = [*found.tensors.values(), *(n.meta["val"] for n in found.ops)]
    assert all(isinstance(v, torch._subclasses.FakeTensor) for v in values)


def test_tied_tensors_are_one() -> None:
    tensors = record("tied_weights").tensors
    assert tensors["middle.weight"] is tensors["decoder.weight"]


@pytest.mark.parametrize(
    "function",
    [
        torch.zeros_like,
        torch.randn_like,
        lambda x: x.data,
        lambda x: x.detach(),
        lambda x: x.new_zeros(x.shape),
        lambda x: torch.zeros(x.shape),
        lambda x: torch.empty(x.shape).copy_(x),
    ],
    ids=["zeros_like", "randn_like", "data", "detach", "new_zeros", "zeros", "empty_copy"],
)
def test_results_are_recognised_when_they_come_back_as_other_objects(function: Any) -> None:
    class Adds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 2) + function(x)

    found = trace(Adds(), Call("", (torch.randn(2, 3),)))
    assert not any("constant" in node.meta for node in found.graph.nodes)


def test_a_submodule_can_be_traced_alone() -> None:
    model = NETWORKS["conv_bn"].build()
    found = trace(model, Call("3", (torch.randn(1, 10, 4, 4),)))
    assert [operator_name(node.target) for node in found.ops] == ["aten.conv2d"]


def test_training_flags_are_those_asked_for() -> None:
    network = NETWORKS["auxiliary_head"]
    model = network.build().train()
    evaluated = trace(model, Call("", network.example()), dict.fromkeys(training_flags(model), False))
    assert len(evaluated.outputs) == 1
    assert all(module.training for module in model.modules())


def test_signatures_differ_between_networks_and_agree_between_modes_that_do_the_same() -> None:
    network = NETWORKS["conv_bn"]
    model = network.build()
    signatures = [
        trace(model, Call("", network.example()), dict.fromkeys(training_flags(model), mode)).signature()
        for mode in (True, False)
    ]
    assert signatures[0] == signatures[1] != record("sequential").signature()


class Stateful(nn.Module):
    """Changes its own state in every way it can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3, 4), nn.BatchNorm2d(4)
        self.steps, self.tags, self.recent = 0, {"a"}, deque([1], maxlen=3)
        self.nested: dict[str, Any] = {"deep": [{"list": []}], "pair": ([], 1)}
        self.unset: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        self.steps += 1
        self.tags.add("b")
        self.recent.append(x)
        self.nested["deep"][0]["list"].append(x)
        self.nested["pair"][0].append(x)
        self.unset = x
        self.added = x
        self.later = nn.Linear(2, 2)
        self.train(False)
        if self.steps > 100:
            raise ValueError("too many steps")
        return x


def test_changes_by_a_forward_pass_are_undone() -> None:
    model = Stateful()
    before = state_of(model)
    trace(model, Call("", (torch.randn(2, 3, 4, 4),)))
    assert differences(before, state_of(model)) == []
    assert (model.tags, list(model.recent), model.nested["deep"], model.nested["pair"][0]) == (
        {"a"},
        [1],
        [{"list": []}],
        [],
    )


def test_what_a_forward_pass_stores_in_attributes_is_known_by_its_places() -> None:
    found = trace(Stateful(), Call("", (torch.randn(2, 3, 4, 4),)))
    assert {operator_name(entry.node.target) for entry in found.stored} == {"aten.batch_norm"}
    assert {entry.place for entry in found.stored} == {"`recent`", "`nested`", "`unset`", "`added`"}


def test_changes_by_a_forward_pass_that_fails_are_undone_too() -> None:
    model = Stateful()
    model.steps = 100
    before = state_of(model)
    with pytest.raises(
        TraceError, match=r"Cannot trace the network: ValueError: too many steps \(.*test_graph\.py:\d+\)"
    ):
        trace(model, Call("", (torch.randn(2, 3, 4, 4),)))
    assert differences(before, state_of(model)) == []


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class DynamicShape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


class Indexed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, : int(x.abs().max())]


@pytest.mark.parametrize("factory", [DataDependent, DynamicShape, Indexed], ids=lambda c: c.__name__)
def test_dependence_on_values_is_refused_with_line_and_advice(factory: type[nn.Module]) -> None:
    with pytest.raises(TraceError, match=r"test_graph\.py:\d+.*depends on the values of tensors.*`target=`"):
        trace(factory(), Call("", (torch.randn(2, 3),)))


class Reading(nn.Module):
    """Asks a buffer for numbers."""

    def __init__(self, read: Any) -> None:
        super().__init__()
        self.first, self.last, self.read = nn.Linear(3, 6), nn.Linear(6, 2), read
        self.register_buffer("numbers", torch.tensor([0, 2, 5]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.read(self, self.first(x)))


@pytest.mark.parametrize(
    "read",
    [
        lambda self, x: x * int(self.numbers[1]),
        lambda self, x: x * self.numbers.tolist()[1],
        lambda self, x: x * 2 if self.numbers[1] else x,
        lambda self, x: x * float(torch.tensor(2.0).sqrt() ** 2),
        lambda self, x: x * len(self.numbers.nonzero()),
        lambda self, x: x * float(self.last.bias.detach().abs().max()),
        lambda self, x: x * 2 if torch.equal(self.numbers, self.numbers) else x,
        lambda self, x: x * (self.numbers.clone().add_(3) > 4).sum().item(),
    ],
    ids=["int", "tolist", "bool", "constant", "nonzero", "parameter", "equal", "in_place"],
)
def test_numbers_that_do_not_depend_on_the_input_are_read_as_they_are(read: Any) -> None:
    model = Reading(read)
    groups = find_groups(model, torch.zeros(2, 3))
    assert [group.name for group in groups] == ["first"]


def test_a_number_that_is_read_is_the_one_in_the_buffer() -> None:
    found = trace(Reading(lambda self, x: x * int(self.numbers.clone().add_(1)[2])), Call("", (torch.zeros(2, 3),)))
    assert [n.args[1] for n in found.ops if operator_name(n.target) == "aten.mul"] == [6]


def test_lazy_modules_are_refused_by_name() -> None:
    with pytest.raises(TraceError, match=r"`0.weight` is not initialized; run one batch"):
        find_groups(nn.Sequential(nn.LazyLinear(3)), torch.randn(2, 4))


def test_wrong_example_inputs_are_refused_with_the_error() -> None:
    with pytest.raises(TraceError, match=r"Cannot trace the network: .*channels"):
        find_groups(conv(3, 4), torch.randn(2, 5, 4, 4))


def test_gradient_mode_and_attention_fast_path_are_restored() -> None:
    with torch.no_grad():
        record("multihead_attention")
        assert (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()) == (False, True)


def test_hooks_of_the_user_run_and_are_kept() -> None:
    model = NETWORKS["sequential"].build()
    handle = model[0].register_forward_hook(lambda module, args, out: out.tanh())
    found = trace(model, Call("", NETWORKS["sequential"].example()))
    assert "aten.tanh" in [operator_name(node.target) for node in found.ops]
    assert list(model[0]._forward_hooks) == [handle.id]


def test_synchronised_normalisation_sends_no_message_while_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    synchronised = nn.SyncBatchNorm.forward
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    recorded = trace(model, Call("", (torch.zeros(2, 1, 6, 6),)))
    assert "aten.batch_norm.default" in map(str, (node.target for node in recorded.ops))
    assert nn.SyncBatchNorm.forward is synchronised
