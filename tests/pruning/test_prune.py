"""Cutting in place: all or nothing, and everything that is not cut stays as it was."""

from __future__ import annotations

import copy
import gc
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from lightning_taylor_prune.errors import PlanError
from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.modules.sizes import MARK
from lightning_taylor_prune.plan import Cut, PruningPlan
from lightning_taylor_prune.pruning import prune as surgery
from lightning_taylor_prune.pruning.prune import prune_
from tests.networks import NETWORKS
from tests.oracles import (
    differences,
    evaluate,
    flatten,
    prepared,
    random_units,
    randomize_norms_,
    relative_error,
    state_of,
    training_step,
    zero_,
)

SEVERAL = ["conv_bn", "residual", "grouped", "dense_concat", "tied_weights", "weight_norm", "buffer_scale"]


def with_gradients(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any, ChannelGroups]:
    """Return a network after a backward pass, its arguments and its groups."""
    network = NETWORKS[name]
    model, example, groups = prepared(network.build(), network.example(), dtype)
    training_step(model, example)
    return model, example, groups


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def taken(tensor: Tensor, plan: PruningPlan, name: str) -> Tensor:
    """Return what a plan leaves of a tensor, by plain indexing."""
    for cut in plan.cuts:
        if cut.tensor == name:
            tensor = tensor[(slice(None),) * cut.dim + (torch.tensor(cut.keep),)]
    return tensor


# --- for every network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_changes_shapes_as_predicted_and_nothing_else(name: str) -> None:
    model, _, groups = with_gradients(name)
    model.train()
    next(model.children(), model).eval()
    handle = model.register_forward_hook(lambda *_: None)
    plan = groups.plan(random_units(groups))
    after, before = groups.after(plan), state_of(model)
    prune_(model, plan)
    now = state_of(model)
    assert {name: tuple(tensors_of(model)[name].shape) for name in after.shapes} == after.shapes
    assert sum(p.numel() for p in model.parameters()) == after.params
    assert list(now["bits"]) == list(before["bits"])
    assert now["modules"] == before["modules"]
    assert {k: f[:2] for k, f in now["flags"].items()} == {k: f[:2] for k, f in before["flags"].items()}
    added = {a for name, held in now["attributes"].items() for a in held.keys() ^ before["attributes"][name].keys()}
    assert added <= {MARK}  # where a module notes which of its sizes follow
    assert list(model._forward_hooks) == [handle.id]


@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients_are_those_of_the_channels_that_stay(name: str) -> None:
    model, _, groups = with_gradients(name)
    plan = groups.plan(random_units(groups))
    named = [(n, t) for n, t in tensors_of(model).items()]
    expected = {n: (taken(t.detach(), plan, n), None if t.grad is None else taken(t.grad, plan, n)) for n, t in named}
    prune_(model, plan)
    for tensor_name, (data, grad) in expected.items():
        tensor = tensors_of(model)[tensor_name]
        assert torch.equal(tensor, data)
        assert (grad is None) == (tensor.grad is None)
        assert grad is None or torch.equal(tensor.grad, grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
def test_pruning_in_two_halves_equals_pruning_once(name: str) -> None:
    once, example, groups = with_gradients(name)
    twice, _, _ = with_gradients(name)
    units = random_units(groups, 0.5)
    prune_(once, groups.plan(units))
    first = {group: chosen[::2] for group, chosen in units.items()}
    between = prune_(twice, groups.plan(first))
    assert between is not None
    second = {
        group: [u - sum(gone < u for gone in first[group]) for u in chosen[1::2]] for group, chosen in units.items()
    }
    end = prune_(twice, between.plan(second))
    assert all(torch.equal(a, tensors_of(once)[n]) for n, a in tensors_of(twice).items())
    assert end is not None
    assert end.shapes == groups.after(groups.plan(units)).shapes
    outputs = zip(flatten(evaluate(once, example)), flatten(evaluate(twice, example)), strict=True)
    assert all(torch.equal(a, b) for a, b in outputs)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "never_called"])  # which fits others then
def test_analysing_a_pruned_network_anew_gives_the_groups_that_are_left(name: str) -> None:
    model, example, groups = with_gradients(name)
    after = prune_(model, groups.plan(random_units(groups)))
    anew = find_groups(model, example)
    assert after is not None
    assert anew.shapes == after.shapes
    # A channel axis of length 1 carries no label, so what has one unit left may not appear as a group any more.
    assert {g.name: g.num_channels for g in anew if g.num_channels > 1} == {
        g.name: g.num_channels for g in after if g.num_channels > 1
    }
    assert (anew.params, anew.macs) == (after.params, after.macs)


@pytest.mark.parametrize("name", ["conv_bn", "residual", "dense_concat", "squeeze_excite", "flatten_to_linear"])
def test_zeroing_everything_that_a_plan_removes_masks_as_well(name: str) -> None:
    model, example, groups = with_gradients(name, torch.float64)
    plan = groups.plan(random_units(groups))
    masked = copy.deepcopy(model)
    zero_(masked, plan)
    prune_(model, plan)
    assert relative_error(evaluate(model, example), evaluate(masked, example)) < 1e-10


# --- tensors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    model, _, groups = with_gradients("conv_bn")
    model.to(dtype)
    prune_(model, groups.plan(random_units(groups)))
    assert {t.dtype for t in tensors_of(model).values() if t.is_floating_point()} == {dtype}


def test_channels_last_stays_in_weights_and_gradients() -> None:
    model = NETWORKS["conv_bn"].build().to(memory_format=torch.channels_last)
    example = (NETWORKS["conv_bn"].example()[0].to(memory_format=torch.channels_last),)
    training_step(model, example)
    model[3].weight.grad = model[3].weight.grad.contiguous(memory_format=torch.channels_last)
    groups = find_groups(model, example)
    prune_(model, groups.plan(random_units(groups)))
    weight = model[3].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.grad.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_pruned_tensors_hold_no_more_memory_than_they_need() -> None:
    model, _, groups = with_gradients("conv_bn")
    prune_(model, groups.plan(random_units(groups)))
    values = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in values)


def test_buffers_are_cut_also_those_outside_the_state_dict() -> None:
    model, _, groups = with_gradients("buffer_scale")
    prune_(model, groups.plan({"stem": [0, 5]}))
    assert (tuple(model.scale.shape), tuple(model.shift.shape)) == ((10, 1, 1), (1, 10, 1, 1))
    assert "shift" not in model.state_dict()


def test_frozen_parameters_stay_frozen() -> None:
    model, _, groups = with_gradients("frozen")
    prune_(model, groups.plan(random_units(groups)))
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"0.weight", "1.bias"}


def test_attributes_of_parameters_stay() -> None:
    model, _, groups = with_gradients("conv_bn")
    model[0].weight.no_decay = True
    prune_(model, groups.plan(random_units(groups)))
    assert model[0].weight.no_decay


def test_tied_weights_stay_one_object() -> None:
    model, _, groups = with_gradients("tied_weights")
    prune_(model, groups.plan(random_units(groups)))
    assert model.decoder.weight is model.middle.weight
    assert tuple(model.decoder.weight.shape) == (8, 8)


def test_parameters_keep_their_place_in_lists_and_plain_attributes() -> None:
    model = NETWORKS["conv_bn"].build()
    model.shortcut_to_weight = (model[0].weight,)
    model.__dict__["alias"] = model[0].weight
    groups = find_groups(model, NETWORKS["conv_bn"].example())
    prune_(model, groups.plan({"0": [1]}))
    assert model.__dict__["alias"] is model[0].weight


def test_parameters_keep_their_place_in_containers() -> None:
    model = NETWORKS["conv_bn"].build()
    weight = model[0].weight
    model.held = {"nested": [(weight, 1), deque([weight])]}
    model.held["itself"] = model.held
    model.chosen = {weight}
    groups = find_groups(model, NETWORKS["conv_bn"].example())
    prune_(model, groups.plan({"0": [1]}))
    (pair, queue), new = model.held["nested"], model[0].weight
    assert new is not weight
    assert [pair[0] is new, queue[0] is new, model.chosen == {new}] == [True] * 3


@pytest.mark.parametrize("name", ["lstm_two_directions", "gru_last_states"])
def test_recurrent_layers_list_their_new_weights(name: str) -> None:
    model, _, groups = with_gradients(name)
    prune_(model, groups.plan(random_units(groups)))
    layer = next(m for m in model.modules() if isinstance(m, nn.RNNBase))
    assert all(a is getattr(layer, n) for a, n in zip(layer._flat_weights, layer._flat_weights_names, strict=True))


# --- hooks --------------------------------------------------------------------------------------------------------


def test_tensor_hooks_go_on_firing_until_their_handles_remove_them() -> None:
    model, example, groups = with_gradients("conv_bn")
    calls: list[str] = []
    handles = [
        model[0].weight.register_hook(lambda grad: calls.append(f"hook {len(grad)}")),
        model[0].weight.register_post_accumulate_grad_hook(lambda p: calls.append(f"accumulated {len(p)}")),
    ]
    prune_(model, groups.plan({"0": [1, 2]}))
    training_step(model, example)
    fired = list(calls)
    for handle in handles:
        handle.remove()
    training_step(model, example)
    assert (fired, calls) == (["hook 8", "accumulated 8"], fired)


def test_module_hooks_go_on_firing() -> None:
    model, example, groups = with_gradients("conv_bn")
    calls: list[str] = []
    model[0].register_forward_pre_hook(lambda *_: calls.append("pre"))
    model[0].register_forward_hook(lambda module, args, out: calls.append(f"forward {out.shape[1]}"))
    model[3].register_full_backward_hook(lambda module, grad_in, grad_out: calls.append(f"back {grad_in[0].shape[1]}"))
    model.register_state_dict_post_hook(lambda *_: calls.append("state"))
    prune_(model, groups.plan({"0": [1, 2]}))
    calls.clear()
    training_step(model, example)
    model.state_dict()
    assert calls == ["pre", "forward 8", "back 8", "state"]


# --- optimizers ---------------------------------------------------------------------------------------------------


def adam_after_steps(name: str = "conv_bn") -> tuple[nn.Module, Any, ChannelGroups, torch.optim.Optimizer, StepLR]:
    model, example, groups = with_gradients(name)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam([{"params": parameters[:2], "lr": 0.02}, {"params": parameters[2:], "lr": 0.01}])
    scheduler = StepLR(optimizer, 1, 0.5)
    for _ in range(2):
        training_step(model, example, optimizer)
    return model, example, groups, optimizer, scheduler


def test_slice_keeps_the_moments_of_the_channels_that_stay() -> None:
    model, _, groups, optimizer, _ = adam_after_steps()
    names = {id(p): n for n, p in model.named_parameters()}
    before = {names[id(p)]: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    plan = groups.plan(random_units(groups))
    prune_(model, plan, optimizer, "slice")
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[parameter][key], taken(before[name][key], plan, name))
        assert optimizer.state[parameter]["step"] == 2


def test_reset_clears_all_state() -> None:
    model, _, groups, optimizer, _ = adam_after_steps()
    prune_(model, groups.plan(random_units(groups)), [optimizer])
    assert dict(optimizer.state) == {}


@pytest.mark.parametrize("mode", ["reset", "slice"])
def test_optimizer_groups_and_scheduler_stay_and_go_on(mode: Any) -> None:
    model, example, groups, optimizer, scheduler = adam_after_steps()
    before = [id(optimizer), id(optimizer.param_groups), *map(id, optimizer.param_groups)]
    prune_(model, groups.plan(random_units(groups)), optimizer, mode)
    scheduler.step()
    weights = [p.detach().clone() for p in model.parameters()]
    training_step(model, example, optimizer)
    assert [id(optimizer), id(optimizer.param_groups), *map(id, optimizer.param_groups)] == before
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    assert [g["lr"] for g in optimizer.param_groups] == [0.01, 0.005]
    assert not any(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


# --- all or nothing -----------------------------------------------------------------------------------------------


class Injected(Exception):
    pass


def optimizer_snapshot(optimizer: torch.optim.Optimizer) -> Any:
    groups = [{k: v if k != "params" else [id(p) for p in v] for k, v in g.items()} for g in optimizer.param_groups]
    state = {id(p): {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    return groups, state


def same_snapshot(a: Any, b: Any) -> bool:
    return (
        a[0] == b[0]
        and a[1].keys() == b[1].keys()
        and all(torch.equal(v, b[1][p][k]) for p, s in a[1].items() for k, v in s.items())
    )


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, bool], list[int]]]:
    """Make the commit raise at its n-th step, before or after the step is done; returns the count of steps."""
    original = surgery.Transaction.do

    def arm(step: int, done: bool) -> list[int]:
        seen = [0]

        def do(self: Any, action: Callable[[], Any], undo: Callable[[], Any]) -> None:
            seen[0] += 1
            if seen[0] - 1 != step:
                return original(self, action, undo)
            if done:
                original(self, action, undo)
            raise Injected

        monkeypatch.setattr(surgery.Transaction, "do", do)
        return seen

    yield arm
    monkeypatch.undo()


@pytest.mark.parametrize("done", [False, True], ids=["before_the_step", "after_the_step"])
@pytest.mark.parametrize("mode", ["reset", "slice"])
@pytest.mark.parametrize("name", SEVERAL)
def test_a_fault_at_any_step_takes_everything_back(name: str, mode: Any, done: bool, fail_at: Any) -> None:
    model, _, groups, optimizer, _ = adam_after_steps(name)
    plan = groups.plan(random_units(groups))
    before, state_before = state_of(model), optimizer_snapshot(optimizer)
    step = 0
    while True:
        fail_at(step, done)
        try:
            prune_(model, plan, optimizer, mode)
        except Injected:
            assert differences(before, state_of(model)) == []
            assert same_snapshot(state_before, optimizer_snapshot(optimizer))
            step += 1
        else:
            break
    assert step > len(plan.cuts)


@pytest.mark.parametrize("function", ["attribute_updates", "_smaller", "prepare_optimizer", "take"])
def test_a_fault_while_preparing_changes_nothing(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    model, _, groups, optimizer, _ = adam_after_steps()
    plan = groups.plan(random_units(groups))
    before, state_before = state_of(model), optimizer_snapshot(optimizer)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise Injected

    monkeypatch.setattr(surgery, function, fail)
    with pytest.raises(Injected):
        prune_(model, plan, optimizer, "slice")
    assert differences(before, state_of(model)) == []
    assert same_snapshot(state_before, optimizer_snapshot(optimizer))


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_plan_fits_once_only() -> None:
    model, _, groups = with_gradients("conv_bn")
    plan = groups.plan({"0": [1]})
    prune_(model, plan)
    before = state_of(model)
    with pytest.raises(PlanError, match=r"`0.weight` to have 10 positions on axis 0, but its shape is \(9, 3, 3, 3\)"):
        prune_(model, plan)
    assert differences(before, state_of(model)) == []


@pytest.mark.parametrize(
    ("tensor", "message"),
    [("9.weight", "no module `9`"), ("0.weigth", "no such parameter or buffer"), ("0.weight", "4 positions on axis 7")],
    ids=["module", "tensor", "axis"],
)
def test_plans_for_other_networks_are_refused(tensor: str, message: str) -> None:
    model, _, groups = with_gradients("conv_bn")
    plan = PruningPlan({}, (Cut(tensor, 7, 4, np.array([0])),), groups)
    with pytest.raises(PlanError, match=message):
        prune_(model, plan)


def wrapped_in_ddp(model: nn.Module, folder: Path) -> nn.Module:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(model)


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda model, folder: torch.compile(model), "OptimizedModule"),
        (lambda model, folder: nn.DataParallel(model), "DataParallel"),
        (wrapped_in_ddp, "DistributedDataParallel"),
    ],
    ids=["compile", "data_parallel", "distributed"],
)
def test_wrappers_are_refused_by_name(wrap: Callable[..., Any], name: str, tmp_path: Path) -> None:
    model, _, groups = with_gradients("conv_bn")
    try:
        with pytest.raises(PlanError, match=f"wrapped in {name}; unwrap it first"):
            prune_(wrap(model, tmp_path), groups.plan({"0": [1]}))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_an_empty_plan_changes_nothing() -> None:
    model, _, groups = with_gradients("conv_bn")
    before = state_of(model)
    assert prune_(model, groups.plan({})) is groups
    assert differences(before, state_of(model)) == []


# --- afterwards ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["conv_bn", "residual", "tied_weights", "buffer_scale", "grouped"])
def test_a_pruned_network_can_be_copied(name: str, copier: Callable[[nn.Module], nn.Module]) -> None:
    model, example, groups = with_gradients(name)
    prune_(model, groups.plan(random_units(groups)))
    copied = evaluate(copier(model), example)
    assert all(torch.equal(a, b) for a, b in zip(flatten(copied), flatten(evaluate(model, example)), strict=True))


def test_a_state_dict_of_the_pruned_network_fits_a_network_pruned_alike() -> None:
    model, example, groups = with_gradients("residual")
    other = randomize_norms_(NETWORKS["residual"].build(seed=5))
    plan = groups.plan(random_units(groups))
    prune_(model, plan)
    prune_(other, plan)
    other.load_state_dict(model.state_dict())
    assert torch.equal(evaluate(other, example), evaluate(model, example))


def test_what_is_pruned_trains_on_to_a_lower_loss() -> None:
    model, example, groups = with_gradients("residual")
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    prune_(model, groups.plan(random_units(groups)), optimizer)
    losses = [training_step(model, example, optimizer).square().mean().item() for _ in range(10)]
    assert losses[-1] < 0.5 * losses[0]


# --- the long run -------------------------------------------------------------------------------------------------


def test_two_hundred_prunes_hold_no_more_memory_than_ten() -> None:
    model = nn.Sequential(nn.Conv2d(1, 300, 3), nn.BatchNorm2d(300), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    example = torch.randn(2, 1, 5, 5)
    model(example)
    optimizer = torch.optim.Adam(model.parameters())
    groups = find_groups(model, example)
    counts = {}
    for prune in range(200):
        model(example).sum().backward()
        optimizer.step()
        cut = prune_(model, groups.plan({"0": [0]}), optimizer, "slice")
        assert cut is not None
        groups = cut
        if prune in (9, 199):
            gc.collect()
            counts[prune] = sum(isinstance(item, torch.Tensor) for item in gc.get_objects())
    assert counts[199] <= counts[9]
