"""Optimizers across a cut: reset and slice, commit and rollback, for the optimizers of torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR

from lightning_taylor_prune.errors import PlanError, PruningError, PruningWarning
from lightning_taylor_prune.plan import Cut
from lightning_taylor_prune.pruning.optimizer_state import Replacement
from lightning_taylor_prune.pruning.optimizers import prepare_optimizer, unwrap

KEEP = {"weight": {0: [0, 2, 5], 1: [1, 3]}, "bias": {0: [0, 2, 5]}}
TENSORS = {"weight": (6, 4, 3, 3), "bias": (6,), "gain": (5,)}
MATRICES = {"weight": (6, 4), "bias": (6, 1), "gain": (5, 2)}

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"weight_decay": 0.1}),
    "sgd-momentum": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
    "sgd-nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "sgd-foreach": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3, "foreach": True}),
    "sgd-fused": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3, "fused": True}),
    "adam": (torch.optim.Adam, {}),
    "adam-amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "adam-foreach": (torch.optim.Adam, {"foreach": True}),
    "adam-fused": (torch.optim.Adam, {"fused": True}),
    "adamw": (torch.optim.AdamW, {}),
    "adamw-amsgrad-fused": (torch.optim.AdamW, {"amsgrad": True, "fused": True}),
    "adagrad": (torch.optim.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.2}),
    "adagrad-foreach": (torch.optim.Adagrad, {"foreach": True}),
    "adagrad-fused": (torch.optim.Adagrad, {"initial_accumulator_value": 0.2, "fused": True}),
    "rmsprop": (torch.optim.RMSprop, {"centered": True, "momentum": 0.9}),
    "rmsprop-foreach": (torch.optim.RMSprop, {"centered": True, "momentum": 0.9, "foreach": True}),
    "adadelta": (torch.optim.Adadelta, {}),
    "adadelta-foreach": (torch.optim.Adadelta, {"foreach": True}),
    "nadam": (torch.optim.NAdam, {}),
    "nadam-foreach": (torch.optim.NAdam, {"foreach": True}),
    "radam": (torch.optim.RAdam, {}),
    "radam-foreach": (torch.optim.RAdam, {"foreach": True}),
    "adamax": (torch.optim.Adamax, {}),
    "adamax-foreach": (torch.optim.Adamax, {"foreach": True}),
    "asgd": (torch.optim.ASGD, {"t0": 2}),
    "asgd-foreach": (torch.optim.ASGD, {"t0": 2, "foreach": True}),
    "rprop": (torch.optim.Rprop, {}),
    "rprop-foreach": (torch.optim.Rprop, {"foreach": True}),
    "adafactor": (torch.optim.Adafactor, {}),
    "adafactor-foreach": (torch.optim.Adafactor, {"foreach": True}),
    "muon": (torch.optim.Muon, {}),
    "lbfgs": (torch.optim.LBFGS, {"max_iter": 4}),
}
SLICEABLE = [name for name in OPTIMIZERS if name != "lbfgs"]


class Net:
    """Three named parameters, two of them cut, an optimizer over them and a loss of any of their sizes."""

    def __init__(self, name: str, memory_format: torch.memory_format = torch.contiguous_format) -> None:
        self.kind, self.options = OPTIMIZERS[name]
        generator = torch.Generator().manual_seed(0)
        shapes = MATRICES if name == "muon" else TENSORS
        tensors = {key: torch.randn(shape, generator=generator) * 0.3 for key, shape in shapes.items()}
        if name != "muon":
            tensors["weight"] = tensors["weight"].contiguous(memory_format=memory_format)
        self.parameters = {key: nn.Parameter(tensor) for key, tensor in tensors.items()}
        self.optimizer = self.build(self.parameters.values(), lr=0.02)

    def build(self, parameters: Any, lr: float) -> torch.optim.Optimizer:
        return self.kind(parameters, lr=lr, **self.options)

    def loss(self, step: int) -> Tensor:
        weight, bias, gain = self.parameters.values()
        inputs = torch.randn(4, 4, 5, 5, generator=torch.Generator().manual_seed(step))
        kernel = weight if weight.dim() == 4 else weight[:, :, None, None]
        hidden = F.conv2d(inputs[:, : weight.shape[1]], kernel, bias.flatten()).tanh()
        return (hidden.mean() * gain.sum()).square() + (gain * hidden.std()).square().sum()

    def train(self, *steps: int) -> Net:
        for step in steps:

            def closure(step: int = step) -> Tensor:
                self.optimizer.zero_grad()
                loss = self.loss(step)
                loss.backward()
                return loss

            self.optimizer.step(closure)
        return self

    def replacements(self) -> list[Replacement]:
        return [replace(key, self.parameters[key], cuts) for key, cuts in KEEP.items()]

    def adopt(self, replacements: Sequence[Replacement]) -> None:
        new = {id(replacement.old): replacement.new for replacement in replacements}
        self.parameters = {key: new.get(id(old), old) for key, old in self.parameters.items()}

    def prune(self, mode: str) -> Net:
        replacements = self.replacements()
        prepare_optimizer(self.optimizer, replacements, mode).commit()
        self.adopt(replacements)
        return self

    def small_copy(self, lr: float) -> Net:
        """The cut network with an optimizer that is built for it."""
        other = copy.copy(self)
        other.adopt(self.replacements())
        other.parameters = {key: nn.Parameter(p.detach().clone()) for key, p in other.parameters.items()}
        other.optimizer = other.build(other.parameters.values(), lr)
        return other

    def numbers(self) -> tuple[list[Tensor], dict[str, Any]]:
        return list(self.parameters.values()), self.optimizer.state_dict()


def select(tensor: Tensor, keep: dict[int, list[int]]) -> Tensor:
    """By advanced indexing, so as to share nothing with the code under test; axes of length one are kept."""
    for dim, positions in keep.items():
        if tensor.shape[dim] > 1:
            tensor = tensor[(slice(None),) * dim + (positions,)]
    return tensor


def replace(name: str, old: nn.Parameter, keep: dict[int, list[int]]) -> Replacement:
    cuts = [Cut(name, dim, old.shape[dim], np.array(positions)) for dim, positions in keep.items()]
    channels_last = old.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    new = nn.Parameter(select(old.detach(), keep).contiguous(memory_format=memory_format))
    return Replacement(old, new, tuple(cuts))


def same(left: Any, right: Any) -> bool:
    """Whether two nested structures hold the same numbers, bit for bit."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def identities(optimizer: torch.optim.Optimizer) -> Any:
    """Every object that an optimizer consists of, and the numbers in its state."""
    groups = [(id(group), id(group["params"]), [id(p) for p in group["params"]]) for group in optimizer.param_groups]
    state = [
        (id(p), id(values), {key: id(value) for key, value in values.items()}) for p, values in optimizer.state.items()
    ]
    return groups, id(optimizer.state), state, copy.deepcopy(optimizer.state_dict()["state"])


def in_mode(net: Net, mode: str) -> Any:
    """Prepare a swap, with the warning that L-BFGS gives."""
    if mode == "slice" and isinstance(net.optimizer, torch.optim.LBFGS):
        with pytest.warns(PruningWarning, match="LBFGS"):
            return prepare_optimizer(net.optimizer, net.replacements(), mode)
    return prepare_optimizer(net.optimizer, net.replacements(), mode)


every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS, ids=str)
every_sliceable = pytest.mark.parametrize("name", SLICEABLE, ids=str)
both_modes = pytest.mark.parametrize("mode", ["reset", "slice"])


@every_optimizer
def test_reset_goes_on_as_if_newly_built(name: str) -> None:
    net = Net(name).train(0, 1, 2)
    net.optimizer.param_groups[0]["lr"] = 0.01
    reference = net.small_copy(lr=0.01)
    assert same(net.prune("reset").train(3, 4, 5).numbers(), reference.train(3, 4, 5).numbers())


@every_optimizer
def test_reset_leaves_the_state_of_a_new_optimizer(name: str) -> None:
    net = Net(name).train(0, 1, 2)
    reference = net.small_copy(lr=0.02)
    assert same(net.prune("reset").numbers(), reference.numbers())


@every_sliceable
def test_slice_keeps_the_state_of_kept_channels(name: str) -> None:
    net = Net(name).train(0, 1, 2)
    old = {key: net.optimizer.state[p] for key, p in net.parameters.items()}
    expected = {
        key: {k: select(v, KEEP.get(key, {})) if v.dim() else v for k, v in values.items()}
        for key, values in old.items()
    }
    net.prune("slice")
    assert same({key: net.optimizer.state[p] for key, p in net.parameters.items()}, expected)


@every_sliceable
def test_slice_goes_on_as_if_the_sliced_state_were_loaded(name: str) -> None:
    net = Net(name).train(0, 1, 2)
    reference = net.small_copy(lr=0.02)
    net.prune("slice")
    reference.optimizer.load_state_dict(copy.deepcopy(net.optimizer.state_dict()))
    assert same(net.train(3, 4, 5).numbers(), reference.train(3, 4, 5).numbers())


@both_modes
@every_optimizer
def test_rollback_restores_every_object(name: str, mode: str) -> None:
    net = Net(name).train(0, 1)
    before = identities(net.optimizer)
    swap = in_mode(net, mode)
    swap.commit()
    swap.rollback()
    assert same(identities(net.optimizer), before)


@every_optimizer
def test_training_after_rollback_is_as_if_nothing_happened(name: str) -> None:
    net, reference = Net(name).train(0, 1), Net(name).train(0, 1)
    swap = prepare_optimizer(net.optimizer, net.replacements(), "reset")
    swap.commit()
    swap.rollback()
    assert same(net.train(2, 3).numbers(), reference.train(2, 3).numbers())


@both_modes
@every_optimizer
def test_preparing_changes_nothing(name: str, mode: str) -> None:
    net = Net(name).train(0, 1)
    before = identities(net.optimizer)
    in_mode(net, mode)
    assert same(identities(net.optimizer), before)


@both_modes
@pytest.mark.parametrize("name", ["sgd-momentum", "adamw", "adagrad"])
def test_groups_and_their_lists_stay_the_same_objects(name: str, mode: str) -> None:
    net = Net(name).train(0)
    before = [(id(group), id(group["params"])) for group in net.optimizer.param_groups]
    net.prune(mode)
    assert [(id(group), id(group["params"])) for group in net.optimizer.param_groups] == before


@both_modes
def test_scheduler_goes_on(mode: str) -> None:
    net = Net("sgd-momentum")
    scheduler = StepLR(net.optimizer, step_size=2, gamma=0.5)
    rates = []
    for step in range(6):
        if step == 3:
            net.prune(mode)
        net.train(step)
        scheduler.step()
        rates.append(net.optimizer.param_groups[0]["lr"])
    assert rates == [0.02, 0.01, 0.01, 0.005, 0.005, 0.0025]


@both_modes
def test_groups_keep_their_options_and_order(mode: str) -> None:
    net = Net("adamw")
    weight, bias, gain = net.parameters.values()
    net.optimizer = torch.optim.AdamW(
        [
            {"params": [("gain", gain), ("weight", weight)], "lr": 0.5, "note": "kept"},
            {"params": [("bias", bias)], "weight_decay": 0.0},
        ],
        lr=0.1,
    )
    options = [{k: v for k, v in g.items() if k != "params"} for g in net.optimizer.param_groups]
    new = net.train(0).prune(mode).parameters
    assert [
        (list(map(id, g["params"])), {k: v for k, v in g.items() if k != "params"}) for g in net.optimizer.param_groups
    ] == list(zip([[id(gain), id(new["weight"])], [id(new["bias"])]], options, strict=True))


def test_state_keeps_the_order_of_its_parameters() -> None:
    net = Net("adam").train(0).prune("slice")
    assert [id(p) for p in net.optimizer.state] == [id(p) for p in net.parameters.values()]


def test_two_axes_of_one_tensor_are_sliced_at_once() -> None:
    net = Net("sgd-momentum").train(0)
    old = net.optimizer.state[net.parameters["weight"]]["momentum_buffer"]
    net.prune("slice")
    new = net.optimizer.state[net.parameters["weight"]]["momentum_buffer"]
    assert torch.equal(new, old[[0, 2, 5]][:, [1, 3]])


def test_slice_leaves_the_state_of_uncut_parameters_alone() -> None:
    net = Net("adam").train(0)
    before = net.optimizer.state[net.parameters["gain"]]
    assert net.prune("slice").optimizer.state[net.parameters["gain"]] is before


@both_modes
def test_optimizer_without_a_cut_parameter_is_left_alone(mode: str) -> None:
    net = Net("adam").train(0)
    before = identities(net.optimizer)
    prepare_optimizer(net.optimizer, Net("adam").replacements(), mode).commit()
    assert same(identities(net.optimizer), before)


@both_modes
def test_parameter_outside_the_optimizer_is_ignored(mode: str) -> None:
    net = Net("adam")
    weight, _, gain = net.parameters.values()
    optimizer = torch.optim.Adam([weight, gain])
    replacements = net.replacements()
    prepare_optimizer(optimizer, replacements, mode).commit()
    assert list(map(id, optimizer.param_groups[0]["params"])) == [id(replacements[0].new), id(gain)]


def test_parameter_in_two_optimizers_moves_in_both() -> None:
    net = Net("adam")
    optimizers = [torch.optim.Adam([net.parameters["weight"]]), torch.optim.SGD([net.parameters["weight"]])]
    replacements = net.replacements()
    for optimizer in optimizers:
        prepare_optimizer(optimizer, replacements, "slice").commit()
    assert all(o.param_groups[0]["params"][0] is replacements[0].new for o in optimizers)


def test_slice_before_the_first_step_has_no_state_to_keep() -> None:
    assert not Net("adam").prune("slice").optimizer.state


def test_slice_keeps_dtypes() -> None:
    net = Net("adam").train(0)
    net.optimizer.state[net.parameters["weight"]]["exp_avg"] = torch.zeros(6, 4, 3, 3, dtype=torch.float64)
    net.prune("slice")
    assert net.optimizer.state[net.parameters["weight"]]["exp_avg"].dtype == torch.float64


@pytest.mark.parametrize("name", ["sgd-fused", "adam-fused", "adagrad-fused", "adam"])
def test_slice_keeps_channels_last(name: str) -> None:
    net = Net(name, torch.channels_last).train(0).prune("slice")
    state = net.optimizer.state[net.parameters["weight"]].values()
    assert all(v.is_contiguous(memory_format=torch.channels_last) for v in state if v.dim() == 4)


@pytest.mark.parametrize("name", ["sgd-fused", "adam-fused", "adagrad-fused"])
def test_fused_steps_after_slice_do_not_depend_on_the_memory_format(name: str) -> None:
    # Gradients by hand, for convolutions round differently in each format. So do the tails of vector loops.
    nets = [Net(name, memory_format) for memory_format in (torch.contiguous_format, torch.channels_last)]
    for net in nets:
        for step in range(4):
            if step == 2:
                net.prune("slice")
            for key, parameter in net.parameters.items():
                values = torch.arange(parameter.numel()).view(parameter.shape).sin() + step
                parameter.grad = torch.empty_like(parameter).copy_(values) if key != "gain" else None
            net.optimizer.step()
    torch.testing.assert_close(nets[0].parameters, nets[1].parameters, rtol=0, atol=1e-6)


def test_sparse_adam_state_is_sliced_and_its_step_kept() -> None:
    table = nn.Parameter(torch.ones(6, 4))
    optimizer = torch.optim.SparseAdam([table])
    F.embedding(torch.tensor([1, 2]), table, sparse=True).sum().backward()
    optimizer.step()
    replacement = replace("table", table, {1: [1, 3]})
    expected = {k: v if k == "step" else v[:, [1, 3]] for k, v in optimizer.state[table].items()}
    prepare_optimizer(optimizer, [replacement], "slice").commit()
    assert same(optimizer.state[replacement.new], expected)


class Custom(torch.optim.Optimizer):
    """An optimizer whose state and attributes a test fills in."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})


class Blocks(Tensor):
    """Stands for state that is stored in a way of its own."""


@pytest.mark.parametrize(
    ("value", "described"),
    [
        (torch.zeros(7), r"Tensor \[7\]"),
        (torch.zeros(6, 4, 3), r"Tensor \[6, 4, 3\]"),
        (torch.zeros(6, 5, 3, 3), r"Tensor \[6, 5, 3, 3\]"),
        (torch.zeros(6, 4, 3, 3).as_subclass(Blocks), r"Blocks \[6, 4, 3, 3\]"),
        ([torch.zeros(6, 4, 3, 3)], "list"),
        (object(), "object"),
    ],
    ids=["length", "dims", "size", "subclass", "list", "object"],
)
def test_state_that_does_not_follow_is_reset_with_a_warning(value: Any, described: str) -> None:
    net = Net("adam")
    optimizer = Custom(net.parameters.values())
    optimizer.state[net.parameters["weight"]] = {"fine": torch.zeros(6, 4, 3, 3), "odd": value}
    pattern = rf"Custom: .*'weight'.* from \[6, 4, 3, 3\] to \[3, 2, 3, 3\]: 'odd' \({described}\)$"
    with pytest.warns(PruningWarning, match=pattern):
        prepare_optimizer(optimizer, net.replacements(), "slice").commit()
    assert not optimizer.state


@pytest.mark.parametrize(
    "value",
    [3, None, "text", True, (0.9, 0.99), {"a": [1]}, torch.tensor(3.0), torch.ones(1), torch.ones(1, 1)],
    ids=["int", "none", "str", "bool", "tuple", "dict", "scalar", "one", "one-two-dims"],
)
def test_state_that_has_no_channels_is_kept(value: Any) -> None:
    net = Net("adam")
    optimizer = Custom(net.parameters.values())
    optimizer.state[net.parameters["weight"]] = {"kept": value}
    net.optimizer = optimizer
    assert net.prune("slice").optimizer.state[net.parameters["weight"]]["kept"] is value


def spoil(net: Net) -> None:
    """Give one parameter state that cannot follow a cut."""
    net.optimizer.state[net.parameters["bias"]]["odd"] = torch.zeros(7)


@pytest.mark.parametrize("name", ["sgd-fused", "sgd-foreach", "adam-fused", "adagrad", "adagrad-fused"])
def test_training_goes_on_after_one_parameter_was_reset(name: str) -> None:
    net = Net(name).train(0)
    spoil(net)
    with pytest.warns(PruningWarning, match="'bias'"):
        net.prune("slice")
    net.train(1)
    assert "odd" not in net.optimizer.state[net.parameters["bias"]]


def test_fused_sgd_gets_zeros_for_one_reset_parameter() -> None:
    net = Net("sgd-fused").train(0)
    spoil(net)
    with pytest.warns(PruningWarning, match="'bias'"):
        net.prune("slice")
    assert same(net.optimizer.state[net.parameters["bias"]], {"momentum_buffer": torch.zeros(3)})


def test_lbfgs_slice_resets_with_a_warning() -> None:
    net = Net("lbfgs").train(0)
    reference = net.small_copy(lr=0.02)
    with pytest.warns(PruningWarning, match="LBFGS.*all state was reset"):
        net.prune("slice")
    assert same(net.train(1, 2).numbers(), reference.train(1, 2).numbers())


def test_lbfgs_without_history_gives_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    Net("lbfgs").prune("slice")
    assert not recwarn.list


def test_warning_turned_into_an_error_changes_nothing() -> None:
    net = Net("adam").train(0)
    spoil(net)
    before = identities(net.optimizer)
    with pytest.raises(PruningWarning):
        prepare_optimizer(net.optimizer, net.replacements(), "slice")
    assert same(identities(net.optimizer), before)


class ZeroRedundancyOptimizer(Custom):
    pass


class ShardedChild(ZeroRedundancyOptimizer):
    pass


def holding(kind: type[Custom], **attributes: Any) -> Callable[[Any], Custom]:
    """A constructor of optimizers that have some more attributes."""

    def build(parameters: Any) -> Custom:
        optimizer = kind(parameters)
        for key, value in attributes.items():
            setattr(optimizer, key, value(parameters))
        return optimizer

    return build


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (ZeroRedundancyOptimizer, "ZeroRedundancyOptimizer divides"),
        (ShardedChild, "ShardedChild divides"),
        (holding(Custom, inner=ZeroRedundancyOptimizer), "ZeroRedundancyOptimizer divides"),
        (holding(Custom, hidden=tuple), "in a tuple"),
        (holding(Custom, hidden=lambda parameters: {"deep": [frozenset(parameters)]}), "in a frozenset"),
    ],
    ids=["zero", "zero-subclass", "zero-inside", "tuple", "deep-frozenset"],
)
def test_optimizer_that_cannot_follow_is_refused(build: Any, message: str) -> None:
    net = Net("adam")
    with pytest.raises(PruningError, match=message):
        prepare_optimizer(build(list(net.parameters.values())), net.replacements(), "reset")


@pytest.mark.parametrize(
    "hold",
    [
        list,
        set,
        dict.fromkeys,
        lambda parameters: dict(enumerate(parameters)),
        lambda parameters: parameters[0],
        lambda parameters: {"deep": ([*parameters],)},
    ],
    ids=["list", "set", "dict-keys", "dict-values", "itself", "deep-list"],
)
def test_other_references_to_parameters_follow(hold: Any) -> None:
    net = Net("adam")
    net.optimizer = holding(Custom, extra=hold)(list(net.parameters.values()))
    net.prune("reset")
    assert ids_in(net.optimizer.extra) == ids_in(hold(list(net.parameters.values())))


def ids_in(value: Any) -> Any:
    """The identities of the parameters in a container."""
    if isinstance(value, nn.Parameter):
        return id(value)
    if isinstance(value, dict):
        return [(ids_in(key), ids_in(item)) for key, item in value.items()]
    if isinstance(value, set):
        return {id(item) for item in value}
    return [ids_in(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("hold", [list, set, dict.fromkeys], ids=["list", "set", "dict"])
def test_other_references_are_rolled_back(hold: Any) -> None:
    net = Net("adam")
    optimizer = holding(Custom, extra=hold)(list(net.parameters.values()))
    before = id(optimizer.extra), ids_in(optimizer.extra)
    swap = prepare_optimizer(optimizer, net.replacements(), "reset")
    swap.commit()
    swap.rollback()
    assert (id(optimizer.extra), ids_in(optimizer.extra)) == before


@both_modes
def test_optimizer_inside_an_optimizer_is_carried_along(mode: str) -> None:
    net = Net("adam").train(0)
    inner = net.optimizer
    outer = Custom([{"params": list(net.parameters.values())}])
    outer.base_optimizer = inner
    outer.param_groups = inner.param_groups
    reference = Net("adam").train(0).prune(mode)
    net.optimizer = outer
    net.prune(mode)
    net.optimizer = inner
    assert same(net.train(1, 2).numbers(), reference.train(1, 2).numbers())


def test_lbfgs_inside_keeps_its_history_where_nothing_of_its_own_was_cut() -> None:
    net = Net("lbfgs")
    inner = net.optimizer = net.build([net.parameters["gain"]], lr=0.02)
    net.train(0)
    before = identities(inner)
    net.optimizer = holding(Custom, inner=lambda _: inner)([net.parameters["weight"]])
    net.prune("slice")
    assert same(identities(inner), before)


def test_parameters_inside_state_are_no_reason_to_refuse() -> None:
    net = Net("adam")
    net.optimizer = Custom(net.parameters.values())
    net.optimizer.state[net.parameters["weight"]] = {"pair": (net.parameters["weight"], 1)}
    assert not net.prune("reset").optimizer.state


class Shell:
    """Wraps an optimizer."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    @property
    def optimizer(self) -> Any:
        return self._optimizer


class Impostor(Shell):
    """Wraps an optimizer and takes on its class, as Lightning's wrappers do."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        self.__class__ = type("Impostor", (Impostor, type(optimizer)), {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


@pytest.mark.parametrize(
    "wrap",
    [lambda o: o, Shell, Impostor, lambda o: Shell(Impostor(o))],
    ids=["bare", "shell", "impostor", "both"],
)
def test_unwrap_finds_the_owner_of_the_groups(wrap: Callable[[Any], Any]) -> None:
    optimizer = Net("lbfgs").optimizer
    assert unwrap(wrap(optimizer)) is optimizer


def test_unwrap_stops_at_an_optimizer_with_groups_of_its_own() -> None:
    outer = holding(Custom, optimizer=torch.optim.SGD)(list(Net("sgd").parameters.values()))
    assert unwrap(outer) is outer


@pytest.mark.parametrize("other", [3, Shell(None), nn.Linear(2, 2)], ids=["int", "empty", "module"])
def test_what_is_no_optimizer_is_refused(other: Any) -> None:
    with pytest.raises(PruningError, match="is no torch optimizer"):
        prepare_optimizer(other, [], "reset")


@pytest.mark.parametrize("wrap", [Shell, Impostor], ids=["shell", "impostor"])
def test_wrapped_lbfgs_forgets_its_sizes(wrap: Callable[[Any], Any]) -> None:
    net = Net("lbfgs").train(0)
    prepare_optimizer(wrap(net.optimizer), net.replacements(), "reset").commit()
    assert net.optimizer._numel_cache is None


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'keep'"):
        prepare_optimizer(Net("sgd").optimizer, [], "keep")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [((3,), 7, "axis 0 is 6 long, not 7"), ((4,), 6, r"predict \[3\], the new one is \[4\]")],
    ids=["old", "new"],
)
def test_replacement_that_does_not_fit_its_cuts_is_refused(shape: Any, size: int, message: str) -> None:
    cut = Cut("bias", 0, size, np.array([0, 2, 5]))
    with pytest.raises(PlanError, match=message):
        Replacement(nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(shape)), (cut,))
