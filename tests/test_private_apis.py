"""Everything private or undocumented of torch and Lightning that the package rests on, and that it does what we need.

A new release of either that breaks the package should fail here first, with the name of what has changed. Private
names (those with an underscore) must all be listed: the last tests read the package's code.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import io
import logging
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import rich
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, ModelPruning, RichProgressBar, StochasticWeightAveraging
from lightning.pytorch.callbacks.progress import rich_progress
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch._subclasses import fake_tensor
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrizations
from torch.utils import _pytree

import lightning_taylor_prune
from lightning_taylor_prune.cost import flop_counter
from lightning_taylor_prune.labels.rules import registry
from lightning_taylor_prune.tracing.recorder import Recorder
from tests.lightning_modules import Classifier, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")

CHECKS: list[tuple[str, Callable[[], None]]] = []


def relies_on(*names: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a check for some names: dotted from ``torch`` on where the code writes them so, else bare."""

    def register(check: Callable[[], None]) -> Callable[[], None]:
        CHECKS.extend((name, check) for name in names)
        return check

    return register


# --- torch: fake tensors and dispatch -------------------------------------------------------------------------------


@relies_on("_use_count", "_version")
def tensor_counts_its_owners_and_its_changes() -> None:
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    before = y._use_count(), y._version
    square = y.square()
    assert (before, y._use_count() > 1, square.detach().add_(1)._version) == ((1, 0), True, 1)


@relies_on("_forward_hooks", "_forward_pre_hooks", "_global_forward_hooks", "_global_forward_pre_hooks")
def hooks_are_in_tables() -> None:
    module, everywhere = nn.Linear(1, 1), nn.modules.module
    own = module.register_forward_hook(print), module.register_forward_pre_hook(print)
    of_all = everywhere.register_module_forward_hook(print), everywhere.register_module_forward_pre_hook(print)
    tables = (
        *(module._forward_hooks, module._forward_pre_hooks),
        *(everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks),
    )
    found = [handle.id in table for handle, table in zip((*own, *of_all), tables, strict=True)]
    for handle in (*own, *of_all):
        handle.remove()
    assert all(found)


@relies_on("_lru_cache_wrapper")
def memo_refers_to_what_it_holds() -> None:
    kept = [object()]
    memo = functools.lru_cache(lambda: kept)
    memo()
    assert type(memo) is functools._lru_cache_wrapper
    assert any(holder is memo for holder in gc.get_referrers(kept))


@relies_on("torch.utils._python_dispatch._disable_current_modes")
def modes_can_be_left_for_a_while() -> None:
    with torch._subclasses.FakeTensorMode(), torch.utils._python_dispatch._disable_current_modes():
        assert type(torch.ones(2)) is torch.Tensor


@relies_on("torch._subclasses")
def fake_tensor_is_built_around_a_meta_tensor() -> None:
    mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    fake = torch._subclasses.FakeTensor(mode, torch.empty(3, 4, device="meta"), torch.device("cpu"))
    with mode:
        result = nn.functional.linear(fake, torch.ones(2, 4))
    assert (tuple(result.shape), result.device.type, type(result)) == ((3, 2), "cpu", type(fake))


@relies_on("torch._subclasses")
def fake_copy_of_a_tensor_has_its_strides() -> None:
    real = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert torch._subclasses.FakeTensorMode().from_tensor(real).stride() == real.stride()


@relies_on("torch._subclasses")
def failing_operator_is_logged_under_the_name_of_fake_tensors_module() -> None:
    said: list[logging.LogRecord] = []
    handler, log = logging.Handler(), logging.getLogger(torch._subclasses.FakeTensor.__module__)
    handler.emit = said.append  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        with torch._subclasses.FakeTensorMode(), pytest.raises(RuntimeError):
            torch.mm(torch.empty(2, 3), torch.empty(4, 5))
    finally:
        log.removeHandler(handler)
    assert [record.name for record in said] == [log.name]


@relies_on("torch.utils._mode_utils")
def modes_are_off_inside_no_dispatch() -> None:
    with torch._subclasses.FakeTensorMode(), torch.utils._mode_utils.no_dispatch():
        assert type(torch.ones(2)) is torch.Tensor


@relies_on("_flat_weights", "_flat_weight_refs")
def recurrent_layers_make_their_lists_of_weights_anew() -> None:
    layer = nn.LSTM(3, 4)
    before = list(layer._flat_weights)
    layer.weight_ih_l0 = nn.Parameter(torch.zeros(16, 3))
    assert layer._flat_weights[0] is layer.weight_ih_l0 and before[0] is not layer.weight_ih_l0
    assert len(layer._flat_weight_refs) == 4


@relies_on("torch.ops.aten._cudnn_rnn")
def cudnn_layers_have_an_operator_of_their_own() -> None:
    assert torch.ops.aten._cudnn_rnn.default._schema.arguments[1].name == "weight"


@relies_on("torch.ops.aten._pack_padded_sequence", "torch.ops.aten._pad_packed_sequence")
def packed_sequences_are_packed_and_padded_by_operators() -> None:
    x = torch.arange(6.0).reshape(3, 2, 1)
    data, sizes = torch.ops.aten._pack_padded_sequence(x, torch.tensor([3, 3]), False)
    again, _ = torch.ops.aten._pad_packed_sequence(data, sizes, False, 0.0, 3)
    assert torch.equal(again, x)


@relies_on("torch._subclasses")
def fake_mode_asks_for_accelerators_through_a_property() -> None:
    asked = torch._subclasses.FakeTensorMode.avoid_device_init
    assert (
        isinstance(asked, property) and asked.fget(torch._subclasses.FakeTensorMode()) is not torch.cuda.is_available()
    )


@relies_on("_parameters", "_buffers")
def scripted_module_takes_its_tensors_from_the_tables() -> None:
    module = torch.jit.script(nn.BatchNorm1d(3).eval())
    for table, name in (
        (module._parameters, "weight"),
        (module._parameters, "bias"),
        (module._buffers, "running_mean"),
    ):
        table[name] = torch.ones(2)
    module._buffers["running_var"] = torch.ones(2)
    assert module(torch.ones(4, 2)).shape == (4, 2)


@relies_on("DataDependentOutputException")
def reading_a_value_of_a_fake_tensor_raises_what_is_explained() -> None:
    with torch._subclasses.FakeTensorMode(), pytest.raises(fake_tensor.DataDependentOutputException):
        torch.ones(2).sum().item()


@relies_on("DynamicOutputShapeException")
def shape_that_depends_on_values_raises_what_is_explained() -> None:
    with torch._subclasses.FakeTensorMode(), pytest.raises(fake_tensor.DynamicOutputShapeException):
        torch.ones(2).nonzero()


@relies_on(
    "torch._dispatch",
    "torch._C",
    "torch._C._TorchDispatchModeKey",
    "torch.utils._python_dispatch",
    "torch.fx.experimental.proxy_tensor.ProxyTorchDispatchMode",
)
def recorder_sees_operators_before_autograd_decomposes_them() -> None:
    seen: list[Any] = []

    def note(func: Any, args: Any, kwargs: Any) -> Any:
        seen.append(func)
        return func(*args, **kwargs)

    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch._dispatch.python.enable_python_dispatcher(), Recorder(note):
        network(torch.empty(2, 4))
    aten = torch.ops.aten
    names = {aten.linear.default, aten.batch_norm.default, aten.dropout.default}
    assert names <= set(seen), seen


@relies_on("torch._C._functorch")
def transforms_can_be_told_and_their_tensors() -> None:
    seen: list[tuple[bool, bool]] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        functorch = torch._C._functorch
        seen.append((functorch.peek_interpreter_stack() is not None, functorch.is_functorch_wrapped_tensor(x)))
        return x

    torch.vmap(look)(look(torch.zeros(2, 3)))
    assert seen == [(False, False), (True, True)]


@relies_on("torch._C._current_graph_task_id")
def each_backward_pass_has_a_number_of_its_own() -> None:
    tasks: list[int] = []
    x = torch.ones(2, requires_grad=True)
    for _ in range(2):
        a, b = x * 2, x * 3
        a.register_hook(lambda _: tasks.append(torch._C._current_graph_task_id()))
        b.register_hook(lambda _: tasks.append(torch._C._current_graph_task_id()))
        (a + b).sum().backward()
    assert tasks[0] == tasks[1] != tasks[2] == tasks[3] and torch._C._current_graph_task_id() not in tasks


@relies_on("_cdata")
def storage_is_known_by_an_address_that_views_share() -> None:
    x = torch.ones(4)
    places = [t.untyped_storage()._cdata for t in (x, x.view(2, 2), x.detach(), x.clone())]
    assert places[0] == places[1] == places[2] != places[3]


@relies_on("_cdata")
def fake_tensors_have_storages_too() -> None:
    with torch._subclasses.FakeTensorMode():
        x = torch.ones(4)
        places = [t.untyped_storage()._cdata for t in (x, x[1:], torch.ones(4))]
    assert places[0] == places[1] != places[2]


@relies_on("_schema")
def schema_of_an_operator_names_its_arguments() -> None:
    arguments = torch.ops.aten.sum.dim_IntList._schema.arguments
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    assert ([a.name for a in arguments[:3]], defaults["keepdim"]) == (["self", "dim", "keepdim"], False)


@relies_on("_schema")
def schema_of_an_operator_gives_types_as_text() -> None:
    assert [str(a.type) for a in torch.ops.aten.add.Tensor._schema.arguments] == ["Tensor", "Tensor", "number"]


@relies_on("_schema")
def schema_of_an_operator_tells_what_it_writes_to() -> None:
    schema = torch.ops.aten.add_.Tensor._schema
    written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    assert (schema.is_mutable, torch.ops.aten.add.Tensor._schema.is_mutable, written) == (True, False, ["self"])


@relies_on("torch.ops.aten._trilinear")
def bilinear_layers_call_trilinear() -> None:
    with flop_counter() as counter:
        nn.Bilinear(3, 4, 5, bias=False)(torch.ones(2, 3), torch.ones(2, 4))
    assert counter.get_total_flops() == 2 * 2 * 3 * 4 * 5


@relies_on("torch.ops.aten._scaled_dot_product_flash_attention_for_cpu")
def attention_on_the_cpu_is_counted() -> None:
    q = torch.ones(1, 2, 4, 8)
    with flop_counter() as counter:
        nn.functional.scaled_dot_product_attention(q, q, q)
    assert counter.get_total_flops() == 2 * (2 * 2 * 4 * 4 * 8)


@relies_on(*(name for name in registry._RULES if name.startswith("aten._")))
def operators_that_have_rules_exist() -> None:
    names = [name.removeprefix("aten.") for name in registry._RULES if name.startswith("aten._")]
    assert [name for name in names if not hasattr(torch.ops.aten, name)] == []


@relies_on("torch.utils._pytree")
def tree_map_stops_where_it_is_told() -> None:
    mapped = _pytree.tree_map(len, [{"a": 1, "b": 2}, ({"c": 3},)], is_leaf=lambda value: isinstance(value, dict))
    assert mapped == [2, (1,)]


@relies_on("torch.utils._pytree")
def tree_map_only_passes_over_other_types() -> None:
    assert _pytree.tree_map_only(int, lambda n: n + 1, {"a": [1, "x"], "b": (2.0,)}) == {"a": [2, "x"], "b": (2.0,)}


@relies_on("torch.utils._pytree")
def tree_flatten_keeps_order_and_structure() -> None:
    leaves, structure = _pytree.tree_flatten(([1, 2], {"a": 3}))
    same = _pytree.tree_flatten(([4, 5], {"a": 6}))[1]
    assert (leaves, _pytree.tree_leaves(([1], 2)), str(structure)) == ([1, 2, 3], [1, 2], str(same))


# --- torch: modules, parameters, optimizers -------------------------------------------------------------------------


@relies_on("torch.nn.modules.batchnorm._BatchNorm")
def synchronised_batch_norm_can_run_as_the_ordinary_one() -> None:
    x, ordinary, synchronised = torch.randn(4, 3, 2, 2), nn.BatchNorm2d(3), nn.SyncBatchNorm(3)
    assert torch.equal(_BatchNorm.forward(synchronised, x), ordinary(x))


@relies_on("torch.nn.modules.batchnorm._NormBase")
def norm_base_is_what_counts_num_features() -> None:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm3d)
    assert all(isinstance(kind(3), _NormBase) and kind(3).num_features == 3 for kind in kinds)


@relies_on("torch.nn.modules.conv._ConvNd")
def conv_nd_is_the_base_of_all_convolutions() -> None:
    found = [(m.transposed, m.kernel_size, m.out_channels) for m in (nn.Conv1d(2, 3, 5), nn.ConvTranspose2d(2, 4, 3))]
    assert isinstance(nn.Conv1d(2, 3, 5), _ConvNd) and found == [(False, (5,), 3), (True, (3, 3), 4)]


@relies_on("_g", "_v")
def weight_norm_of_old_keeps_length_and_direction_beside_its_hook() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer = nn.utils.weight_norm(nn.Linear(3, 2))
    assert [hook.name for hook in layer._forward_pre_hooks.values()] == ["weight"]
    assert layer.weight_g.shape == (2, 1) and layer.weight_v.shape == (2, 3)


@relies_on("torch.nn.utils.parametrizations._WeightNorm")
def weight_norm_keeps_gain_and_direction_and_has_a_class_of_its_own() -> None:
    holder = parametrizations.weight_norm(nn.Linear(3, 2), dim=1).parametrizations.weight
    assert isinstance(holder[0], parametrizations._WeightNorm) and holder.original0.shape == (1, 3)


@relies_on("_version")
def a_tensor_counts_its_changes_and_those_of_its_aliases() -> None:
    x = torch.zeros(2)
    alias, before = x.detach(), x._version
    x.add_(1)
    assert alias._version == before + 1


@relies_on("torch.nn.modules.conv._ConvTransposeNd")
def conv_transpose_nd_is_the_base_of_transposed_convolutions_only() -> None:
    assert isinstance(nn.ConvTranspose2d(2, 4, 3), _ConvTransposeNd) and not isinstance(
        nn.Conv2d(2, 4, 3), _ConvTransposeNd
    )


@relies_on("_parameters")
def module_takes_its_parameter_from_the_table() -> None:
    module, new = nn.Linear(2, 2, bias=False), nn.Parameter(torch.zeros(1, 2))
    module._parameters["weight"] = new
    assert module.weight is new and module(torch.ones(3, 2)).shape == (3, 1)


@relies_on("_buffers")
def module_takes_its_buffer_from_the_table() -> None:
    module, new = nn.BatchNorm1d(3), torch.zeros(2)
    module._buffers["running_mean"] = new
    assert module.running_mean is new and module.state_dict()["running_mean"].shape == (2,)


@relies_on("_backward_hooks")
def tensor_hooks_move_with_their_table() -> None:
    old, new = (nn.Parameter(torch.ones(n)) for n in (3, 2))
    seen: list[int] = []
    handle = old.register_hook(lambda gradient: seen.append(len(gradient)))
    new._backward_hooks = old._backward_hooks
    new.sum().backward()
    handle.remove()
    new.sum().backward()
    assert seen == [2]


@relies_on("_post_accumulate_grad_hooks")
def post_accumulate_hooks_move_with_their_table() -> None:
    old, new = (nn.Parameter(torch.ones(n)) for n in (3, 2))
    seen: list[int] = []
    handle = old.register_post_accumulate_grad_hook(lambda parameter: seen.append(len(parameter)))
    new._post_accumulate_grad_hooks = old._post_accumulate_grad_hooks
    new.sum().backward()
    handle.remove()
    new.sum().backward()
    assert seen == [2]


@relies_on("_backward_hooks", "_backward_pre_hooks")
def empty_tables_switch_the_hooks_of_a_module_off() -> None:
    module, seen, x = nn.Linear(2, 2), [], torch.ones(1, 2, requires_grad=True)
    module.register_full_backward_hook(lambda *_: seen.append("hook"))
    module.register_full_backward_pre_hook(lambda *_: seen.append("pre-hook"))
    module(x).sum().backward()
    assert set(seen) == {"hook", "pre-hook"}
    seen.clear()
    module.__dict__.update(_backward_hooks=OrderedDict(), _backward_pre_hooks=OrderedDict())
    module(x).sum().backward()
    assert seen == []


@relies_on("_metadata", "_state_dict_hooks")
def state_dicts_take_metadata_from_hooks_and_keep_them_in_files() -> None:
    def note(module: nn.Module, state_dict: Any, prefix: str, local_metadata: dict[str, Any]) -> None:
        local_metadata["noted"] = {"sizes": [1, 2]}

    network, file = nn.Sequential(nn.Linear(1, 1)), io.BytesIO()
    network[0].register_state_dict_post_hook(note)
    torch.save({"state_dict": network.state_dict()}, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)["state_dict"]
    assert read._metadata["0"]["noted"] == {"sizes": [1, 2]} and note in network[0]._state_dict_hooks.values()


@relies_on("_load_state_dict_pre_hooks")
def load_hook_can_be_recognised() -> None:
    def hook(*args: Any) -> None:
        """Do nothing."""

    module = nn.Linear(2, 2)
    handle = module.register_load_state_dict_pre_hook(hook)
    found = [getattr(entry, "hook", entry) for entry in module._load_state_dict_pre_hooks.values()]
    handle.remove()
    assert found == [hook] and not module._load_state_dict_pre_hooks


@relies_on("_params")
def lbfgs_optimizes_the_list_of_its_only_group() -> None:
    optimizer = torch.optim.LBFGS(nn.Linear(3, 2).parameters())
    assert optimizer._params is optimizer.param_groups[0]["params"]


@relies_on("_numel_cache")
def lbfgs_counts_its_parameters_anew_without_its_cache() -> None:
    optimizer = torch.optim.LBFGS([nn.Parameter(torch.ones(3))])
    before = optimizer._numel()
    optimizer._params[0] = nn.Parameter(torch.ones(2))
    stale, optimizer._numel_cache = optimizer._numel(), None
    assert (before, stale, optimizer._numel()) == (3, 3, 2)


@relies_on("Trainer")
def trainer_of_a_module_is_known_by_the_name_of_its_class() -> None:
    assert pl.Trainer.__name__ == "Trainer"


@relies_on("_average_model", "StochasticWeightAveraging")
def averaging_callback_keeps_its_copy_of_the_module() -> None:
    average = StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)
    trainer(average, max_epochs=2).fit(Classifier(), loader())
    assert (type(average._average_model), type(average).__name__) == (Classifier, "StochasticWeightAveraging")


@relies_on("_original_layers", "ModelPruning")
def masking_callback_keeps_a_copy_of_every_layer_by_its_identity() -> None:
    masks, module = ModelPruning("l1_unstructured", amount=0.2, make_pruning_permanent=False), Classifier()
    trainer(masks, max_epochs=1).fit(module, loader())
    held = masks._original_layers[id(module.network[3])]["data"]
    assert (held.weight.shape, type(masks).__name__) == (module.network[3].weight_orig.shape, "ModelPruning")


@relies_on("torch._dynamo", "OptimizedModule")
def reset_has_a_compiled_module_compiled_anew() -> None:
    compiled: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph

    module = torch.compile(nn.Linear(2, 2), backend=backend)
    module(torch.ones(1, 2))
    torch._dynamo.reset()
    module(torch.ones(1, 2))
    assert (type(module).__name__, len(compiled)) == ("OptimizedModule", 2)


@relies_on("_compiled_call_impl", "_torchdynamo_orig_callable")
def compiled_modules_and_functions_say_so() -> None:
    module, plain = nn.Linear(2, 2), nn.Linear(2, 2)
    module.compile()
    assert module._compiled_call_impl is not None and plain._compiled_call_impl is None
    assert hasattr(torch.compile(plain.forward), "_torchdynamo_orig_callable")


@relies_on("_calculate_qparams")
def observer_of_histograms_has_a_range_as_others_have() -> None:
    from torch.ao.quantization import HistogramObserver

    observer = HistogramObserver()
    observer(torch.tensor([-1.0, 1.0]))
    scale, _ = observer._calculate_qparams(observer.min_val, observer.max_val)
    assert scale > 0


@relies_on("_ForwardRedirection")
def forward_is_redirected_by_a_function_of_the_strategy() -> None:
    from lightning.pytorch.strategies.strategy import _ForwardRedirection

    seen = []

    class Module(nn.Module):
        def step(self) -> None:
            pass

    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self) -> Any:
            seen.append(self.inner.forward.__qualname__)
            return self.inner()

    module = Module()
    _ForwardRedirection()(Wrapper(module), module, "step")
    assert seen[0].startswith("_ForwardRedirection.")


@relies_on("LightningOptimizer")
def wrapper_of_an_optimizer_has_its_class_but_not_its_groups() -> None:
    inner = torch.optim.SGD(nn.Linear(2, 2).parameters())
    wrapper = LightningOptimizer(inner)
    assert isinstance(wrapper, torch.optim.Optimizer) and "param_groups" not in vars(wrapper)
    assert wrapper.optimizer is inner


@relies_on("ZeroRedundancyOptimizer")
def sharding_optimizer_has_the_name_that_is_refused() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    assert ZeroRedundancyOptimizer.__name__ == "ZeroRedundancyOptimizer"


@relies_on("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")
def wrappers_of_networks_have_the_names_that_are_refused() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    kinds = (nn.DataParallel, nn.parallel.DistributedDataParallel, FullyShardedDataParallel)
    assert [kind.__name__ for kind in kinds] == ["DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"]


# --- torch: processes -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """This process alone as a group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@relies_on("_get_default_store")
def default_store_passes_messages() -> None:
    with process_group():
        store = dist.distributed_c10d._get_default_store()
        store.set("key", "message")
        store.wait(["key"])
        assert store.get("key") == b"message"


# --- Lightning: the Trainer -----------------------------------------------------------------------------------------


class Watcher(Callback):
    """Writes down what the package would read in a fit."""

    def __init__(self) -> None:
        self.accumulates: list[bool] = []
        self.windows: list[int] = []
        self.steps: list[int] = []
        self.batches: list[int] = []
        self.names: list[str] = []

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.accumulates.append(trainer.fit_loop._should_accumulate())
        self.windows.append(trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.steps.append(trainer.fit_loop.epoch_loop._batches_that_stepped)
        self.batches.append(trainer.fit_loop.epoch_loop.total_batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        results = trainer._results
        assert results is not None
        self.names = [results._forked_name(metric, False)[0] for metric in results.values() if not metric.has_reset]


@cache
def watched() -> Watcher:
    """A fit of three batches, of which two are accumulated, with a validation."""
    watcher = Watcher()
    fit = trainer(watcher, accumulate_grad_batches=2, num_sanity_val_steps=0)
    fit.fit(Classifier(), loader(24), loader(8, seed=1))
    return watcher


@relies_on("_should_accumulate")
def fit_loop_knows_after_backward_whether_a_step_follows() -> None:
    assert watched().accumulates == [True, False, False]


@relies_on("fit_loop.epoch_loop.batch_progress")
def current_ready_counts_the_batches_of_an_epoch() -> None:
    assert watched().windows == [1, 2, 3]


@relies_on("_batches_that_stepped")
def epoch_loop_counts_the_steps_before_a_batch() -> None:
    assert watched().steps == [0, 0, 1]


@relies_on("fit_loop.epoch_loop.total_batch_idx")
def total_batch_idx_counts_batches_from_zero() -> None:
    assert watched().batches == [0, 1, 2]


@relies_on("_results", "_forked_name")
def results_name_what_the_validation_logged() -> None:
    assert watched().names == ["val_loss", "val_acc"]


class _ValidateOnce(Callback):
    """Asks for a validation after the second batch, as `ValidationRequest` does."""

    def __init__(self) -> None:
        self.at: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            trainer.check_val_every_n_epoch = None
            trainer.val_check_batch = trainer.fit_loop.epoch_loop.total_batch_idx + 1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.at.append(trainer.global_step)


@relies_on("trainer.val_check_batch", "trainer.check_val_every_n_epoch")
def trainer_validates_at_the_batch_that_is_written_into_its_schedule() -> None:
    asked = _ValidateOnce()
    trainer(asked, num_sanity_val_steps=0).fit(Classifier(), loader(24), loader(8, seed=1))
    assert asked.at[:1] == [2]


class _ValidatesAtTheStart(Callback):
    """Notes when a validation is due, and runs one as a batch begins, as `validate_now` does."""

    def __init__(self) -> None:
        self.due: list[bool] = []
        self.logged: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        loop = trainer.fit_loop
        self.due.append(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))
        self.logged = dict(trainer.callback_metrics)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *args: Any) -> None:
        connector = trainer._logger_connector
        first, trainer.validating = connector._first_loop_iter, True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training, connector._first_loop_iter = True, None
        connector.on_batch_start(batch)
        connector._first_loop_iter = first


@relies_on("_should_check_val_fx", "_data_fetcher", "_logger_connector", "_first_loop_iter")
def validation_can_be_foreseen_and_be_run_as_a_batch_begins() -> None:
    asked = _ValidatesAtTheStart()
    trainer(asked, num_sanity_val_steps=0).fit(Classifier(), loader(24), loader(8, seed=1))
    assert asked.due == [False, False, True] and {"val_acc", "train_loss"} <= asked.logged.keys()


@relies_on("_generate_state_key")
def state_key_tells_callbacks_apart_by_their_arguments() -> None:
    keys = [Callback()._generate_state_key(target=target, criterion="taylor") for target in (None, "head", "head")]
    assert keys[0] != keys[1] == keys[2]


@relies_on("_compiler_ctx")
def compiled_lightning_module_says_so() -> None:
    from lightning.pytorch.utilities.compile import from_compiled

    plain, compiled = Classifier(), from_compiled(torch.compile(Classifier(), backend="eager"))
    assert getattr(plain, "_compiler_ctx", None) is None and compiled._compiler_ctx is not None


# --- Lightning: strategies ------------------------------------------------------------------------------------------


@relies_on("_MultiProcessingLauncher")
def spawning_strategy_has_the_launcher_that_is_refused() -> None:
    strategy = trainer(strategy="ddp_spawn", devices=2).strategy
    assert type(strategy.launcher).__name__ == "_MultiProcessingLauncher"


@relies_on("SingleDeviceStrategy", "DDPStrategy")
def strategies_have_the_names_that_are_allowed() -> None:
    names = [type(trainer(strategy=strategy).strategy).__name__ for strategy in ("auto", "ddp")]
    assert names == ["SingleDeviceStrategy", "DDPStrategy"]


@relies_on("_ddp_comm_state", "PostLocalSGDState")
def state_of_a_communication_hook_is_kept() -> None:
    from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState

    state = PostLocalSGDState(process_group=None, subgroup=None, start_localSGD_iter=8)
    kept = DDPStrategy(ddp_comm_state=state)._ddp_comm_state
    assert kept is state and type(kept).__name__ == "PostLocalSGDState"


@relies_on("PowerSGDState.error_dict", "PowerSGDState.p_memory_dict", "PowerSGDState.q_memory_dict")
def power_sgd_keeps_its_memory_in_dictionaries() -> None:
    from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

    state = PowerSGDState(process_group=None)
    assert [state.error_dict, state.p_memory_dict, state.q_memory_dict] == [{}, {}, {}]


@relies_on("_model_averager")
def strategy_has_no_averager_unless_it_averages() -> None:
    assert vars(DDPStrategy())["_model_averager"] is None


@relies_on("_pl_static_graph_delay_done")
def static_graph_is_flushed_once_per_wrapper() -> None:
    assert vars(DDPStrategy())["_pl_static_graph_delay_done"] is False


@relies_on("strategy.configure_ddp")
def module_is_wrapped_anew_when_it_is_put_back() -> None:
    strategy = DDPStrategy(parallel_devices=[torch.device("cpu")], cluster_environment=LightningEnvironment())
    module = Classifier()
    wrappers = []
    with process_group():
        for _ in range(2):
            strategy.model = module
            strategy.configure_ddp()
            wrappers.append(strategy.model)
    assert wrappers[0] is not wrappers[1] and [w.module for w in wrappers] == [module, module]


@relies_on("precision_plugin.scaler")
def scaler_of_half_precision_is_with_the_precision_plugin() -> None:
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    assert trainer(plugins=plugin).precision_plugin.scaler.get_scale() == 4.0


# --- Lightning: the rich progress bar -------------------------------------------------------------------------------


class _Bar(RichProgressBar):
    """Writes down when its private methods are called."""

    def __init__(self) -> None:
        super().__init__(leave=True, console_kwargs={"file": io.StringIO(), "width": 100})
        self.begun: list[Any] = []
        self.updates: list[tuple[Any, int]] = []
        self.stopped: list[bool] = []

    def _init_progress(self, trainer: pl.Trainer) -> None:
        super()._init_progress(trainer)
        self.begun.append(self.progress)
        self.stopped.append(self._progress_stopped)

    def _update(self, progress_bar_id: Any, current: int, *args: bool, **kwargs: bool) -> None:
        self.updates.append((progress_bar_id == self.train_progress_bar_id, current))
        super()._update(progress_bar_id, current, *args, **kwargs)

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch number {super()._get_train_description(current_epoch)}"

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.described = self.train_progress_bar.description
        self.columns, self.width = self.configure_columns(trainer), self._console.width
        self.is_transient = self.progress.live.transient
        self.shown = list(self.progress.get_renderables())
        super().on_train_end(trainer, pl_module)


@cache
def bar() -> _Bar:
    """A bar after a fit of two epochs."""
    shown = _Bar()
    try:
        trainer(shown, enable_progress_bar=True, max_epochs=2).fit(Classifier(), loader(24))
    finally:
        rich.reconfigure()
    return shown


@relies_on("_init_progress", "_leave")
def progress_of_each_epoch_is_another_where_bars_are_left() -> None:
    assert bar()._leave and len({id(progress) for progress in bar().begun}) == 2


@relies_on("_progress_stopped")
def progress_is_stopped_after_a_fit_and_not_before() -> None:
    assert (set(bar().stopped), bar()._progress_stopped) == ({False}, True)


@relies_on("_update")
def training_row_is_moved_by_update() -> None:
    assert [n for is_training, n in bar().updates if is_training][-3:] == [1, 2, 3]


@relies_on("_get_train_description")
def training_row_is_described_by_a_method() -> None:
    assert bar().described.startswith("epoch number Epoch 1/1")


@relies_on("_console")
def console_of_the_bar_has_a_width() -> None:
    assert bar().width == 100


@relies_on("CustomBarColumn", "CustomTimeColumn", "ProcessingSpeedColumn")
def columns_are_of_the_classes_that_are_replaced() -> None:
    kinds = {type(column): column for column in bar().columns}
    style = kinds[rich_progress.CustomTimeColumn].style, kinds[rich_progress.ProcessingSpeedColumn].style
    assert hasattr(kinds[rich_progress.CustomBarColumn], "bar_width") and all(isinstance(s, str) for s in style)


@relies_on("progress.live", "progress.get_renderables")
def table_of_the_bar_can_be_extended_and_made_transient() -> None:
    assert (bar().is_transient, len(bar().shown)) == (False, 1)


# --- the tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [pytest.param(c, id=f"{name}: {c.__name__}") for name, c in CHECKS])
def test_private_api_does_what_the_package_needs(check: Callable[[], None]) -> None:
    check()


PACKAGE = Path(lightning_taylor_prune.__file__).parent

OURS = {
    "_hard_coded",
    "_sizes_that_follow_pruning",
    "_pixels",
    "_own_class",
    "_code",
    "_forward_in_training",
    "_forward_in_evaluation",
    "_close",
    "_forget",
    "_prune",
}
"""Attributes that the package itself puts on objects of others."""

DOCUMENTED = {"_getframe", "_make", "_replace"}
"""Of Python: `sys._getframe`, `namedtuple._make` and `_replace`."""


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[A-Za-z]\w*", name.rpartition(".")[2]) is not None


def up_to_private(name: str) -> str | None:
    """Return a dotted name up to its last private component, ``None`` if it has none."""
    parts = name.split(".")
    last = max((i for i, part in enumerate(parts) if is_private(part)), default=None)
    return None if last is None else ".".join(parts[: last + 1])


def own_names(tree: ast.AST) -> Iterator[str]:
    """Yield what a module defines: functions, classes, and whatever is assigned to a name or to ``self``."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            yield node.attr


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _reads_within_class(tree: ast.AST) -> set[ast.AST]:
    """Return the attributes of plain names that the class around them defines: of another object of that class."""
    classes = [(node, set(own_names(node))) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    inside = [(node, own) for cls, own in classes for node in ast.walk(cls) if isinstance(node, ast.Attribute)]
    return {node for node, own in inside if isinstance(node.value, ast.Name) and node.attr in own}


def foreign_names(tree: ast.AST, own: set[str]) -> Iterator[str]:
    """Yield private names of others that some code uses: in imports, attributes, strings and keywords."""
    within_class = _reads_within_class(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] != PACKAGE.name:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if node not in within_class and not (_is_self(node.value) and node.attr in own):
                yield _attribute(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and is_private(f".{node.value}"):
            if node.value not in own:
                yield node.value
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg


def class_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names of classes that some code knows by their ``__name__``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == "__name__":
            constants = (n for other in node.comparators for n in ast.walk(other) if isinstance(n, ast.Constant))
            yield from (n.value for n in constants if isinstance(n.value, str))


def _attribute(node: ast.Attribute) -> str:
    """Return ``torch._C`` for what is read from torch itself, else the bare name of the attribute."""
    name = ast.unparse(node)
    return name if re.fullmatch(r"torch(\.\w+)+", name) else node.attr


@cache
def used() -> frozenset[str]:
    """The private names of others in the package; operators aside, which the registry of rules lists."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    own = {name for tree in trees for name in own_names(tree)}
    found = {private for tree in trees for name in foreign_names(tree, own) if (private := up_to_private(name))}
    return frozenset(name for name in found - OURS - DOCUMENTED if not name.startswith("aten."))


def test_every_private_name_is_checked_here() -> None:
    assert sorted(used() - {name for name, _ in CHECKS}) == []


def test_no_check_outlives_its_use() -> None:
    checked = {name for name, _ in CHECKS if is_private(name) and not name.startswith("aten.")}
    assert sorted(checked - used()) == []


def test_every_class_known_by_its_name_is_checked_here() -> None:
    known = {name for path in PACKAGE.rglob("*.py") for name in class_names(ast.parse(path.read_text()))}
    assert known and sorted(known - {name for name, _ in CHECKS}) == []


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("from torch._subclasses import FakeTensor", "torch._subclasses"),
        ("from torch.nn.modules.conv import _ConvNd", "torch.nn.modules.conv._ConvNd"),
        ("import torch._inductor.config", "torch._inductor"),
        ("x = torch._C.DispatchKey.CPU", "torch._C"),
        ("module._modules", "_modules"),
        ("super()._step()", "_step"),
        ("class A(B):\n    def f(self): return self._theirs", "_theirs"),
        ("class A:\n    def _f(self): return 1\ndef g(trainer): return trainer._f()", "_f"),
        ("getattr(strategy, '_lightning_module', None)", "_lightning_module"),
        ("table.update(_forward_hooks={})", "_forward_hooks"),
        ("getattr(module, '_hook') == '_Launcher'", "_Launcher"),
    ],
)
def test_private_name_is_found(code: str, name: str) -> None:
    tree = ast.parse(code)
    assert name in {up_to_private(found) for found in foreign_names(tree, set(own_names(tree)))}


def test_class_known_by_its_name_is_found() -> None:
    code = "type(x).__name__ == 'A' or type(x).__name__ in ('B', 'C')"
    assert list(class_names(ast.parse(code))) == ["A", "B", "C"]


@pytest.mark.parametrize(
    "code",
    [
        "class A:\n    def f(self): self._mine = self._mine + 1",
        "class A:\n    def _f(self): return self._f()",
        "class A:\n    def _f(self): return 1\n    def g(self, other): return other._f()",
        "from lightning_taylor_prune.labels import _hidden",
        "x.__dict__",
        "'_'",
    ],
)
def test_own_private_name_is_no_finding(code: str) -> None:
    tree = ast.parse(code)
    assert not any(up_to_private(found) for found in foreign_names(tree, set(own_names(tree))))
