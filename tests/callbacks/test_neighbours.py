"""The callback beside everything else that Lightning users have in a Trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    RichProgressBar,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_taylor_prune import TaylorPruningCallback
from tests.lightning_modules import Classifier, TwoStage, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")


def callback(**kwargs: Any) -> TaylorPruningCallback:
    return TaylorPruningCallback(**{"every_n_steps": 3, "filters_per_prune": 2, "max_prunes": 4, **kwargs})


def fit(module: pl.LightningModule, pruning: TaylorPruningCallback, *others: Any, **kwargs: Any) -> pl.Trainer:
    run = trainer(pruning, more_callbacks=list(others), **{"max_epochs": 3, **kwargs})
    run.fit(module, loader(), loader(seed=1))
    return run


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class Scheduled(Classifier):
    """With a hyperparameter that tuners change, data of its own, and a backbone."""

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.backbone, self.network = self.network[:6], self.network[6:]

    def forward(self, x: Any) -> Any:
        return self.network(self.backbone(x))

    def train_dataloader(self) -> Any:
        return loader(64, self.batch_size)

    def val_dataloader(self) -> Any:
        return loader(64, self.batch_size, seed=1)

    def configure_optimizers(self) -> Any:
        head = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(head, self.lr, momentum=0.9)


OTHERS: dict[str, Any] = {
    "EarlyStopping": lambda: EarlyStopping("val_loss", patience=9),
    "GradientAccumulationScheduler": lambda: GradientAccumulationScheduler({0: 1, 1: 2}),
    "EMA": lambda: EMAWeightAveraging(decay=0.9),
    "SWA": lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1),
    "RichProgressBar": RichProgressBar,
    "ModelSummary": ModelSummary,
    "LearningRateMonitor": LearningRateMonitor,
    "DeviceStatsMonitor": lambda: DeviceStatsMonitor(cpu_stats=False),
}


@pytest.mark.parametrize("name", OTHERS)
def test_prunes_beside(name: str, tmp_path: Path) -> None:
    pruning, module = callback(), Classifier()
    fit(module, pruning, OTHERS[name](), logger=CSVLogger(tmp_path), enable_progress_bar=name == "RichProgressBar")
    assert pruning.history and count(module) == pruning.history[-1]["params"]


def test_averaged_weights_are_those_of_the_pruned_network() -> None:
    """With decay 0 the moving average is the network itself, cuts included."""
    plain, averaged = Classifier(), Classifier()
    fit(plain, callback())
    fit(averaged, callback(), EMAWeightAveraging(decay=0.0))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), averaged.parameters(), strict=True))


def test_best_checkpoint_of_those_that_reached_the_target(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, monitor="prune/params", mode="min", save_top_k=1)
    pruning = callback()
    fit(Classifier(), pruning, saving, enable_checkpointing=True)
    assert saving.best_model_score == pruning.history[-1]["params"]


def test_backbone_finetuning_unfreezes_what_was_pruned_while_it_was_frozen() -> None:
    pruning, module = callback(every_n_steps=4, max_prunes=None), Scheduled()
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False, backbone_initial_lr=1e-2)
    run = fit(module, pruning, finetuning)
    held = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert pruning.history[0]["step"] == 4 and {id(p) for p in module.parameters()} == held


@pytest.mark.parametrize("tuner", [LearningRateFinder, BatchSizeFinder], ids=lambda t: t.__name__)
def test_tuners_try_without_pruning(tuner: Any, tmp_path: Path) -> None:
    pruning, module = callback(), Scheduled()
    options = {"num_training_steps": 10} if tuner is LearningRateFinder else {"max_trials": 2}
    run = trainer(pruning, more_callbacks=[tuner(**options)], max_epochs=3, default_root_dir=tmp_path)
    run.fit(module)
    assert [row["count"] for row in pruning.history] == [1, 2, 3, 4]


def test_two_callbacks_on_two_targets() -> None:
    module = TwoStage()
    first, second = callback(target="network"), callback(target="head", every_n_steps=4)
    trainer(first, more_callbacks=[second], max_epochs=3).fit(module, loader())
    assert module.network[0].out_channels < 8 and module.head[2].out_features < 12


def test_two_callbacks_keep_their_states_apart(tmp_path: Path) -> None:
    module = TwoStage()
    run = trainer(callback(target="network"), more_callbacks=[callback(target="head")], max_epochs=1)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "both.ckpt")
    keys = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    assert sum("Taylor" in key for key in keys) == 2


# --- ways of running a Trainer --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 2},
        {"check_val_every_n_epoch": 2},
        {"check_val_every_n_epoch": None, "val_check_interval": 5},
        {"limit_train_batches": 5},
        {"limit_val_batches": 0},
        {"overfit_batches": 4},
        {"max_steps": 10, "max_epochs": -1},
    ],
    ids=str,
)
def test_trainer_options(options: dict[str, Any]) -> None:
    pruning, module = callback(), Classifier()
    fit(module, pruning, **options)
    assert pruning.history and count(module) == pruning.history[-1]["params"]


def test_fast_dev_run_prunes_in_its_one_step() -> None:
    pruning = callback(every_n_steps=1)
    fit(Classifier(), pruning, fast_dev_run=True)
    assert len(pruning.history) == 1


def test_fit_twice_goes_on() -> None:
    pruning, module = callback(), Classifier()
    fit(module, pruning, max_epochs=1)
    fit(module, pruning, max_epochs=1)
    assert [row["count"] for row in pruning.history] == [1, 2, 3, 4] and count(module) == pruning.history[-1]["params"]


def test_fit_with_another_module_starts_anew() -> None:
    pruning = callback()
    fit(Classifier(), pruning, max_epochs=1)
    module = Classifier()
    fit(module, pruning, max_epochs=1)
    assert len(pruning.history) == 2 and count(module) == pruning.history[-1]["params"]


def test_keyboard_interrupt_leaves_a_network_that_works() -> None:
    class Interrupting(Classifier):
        def on_train_batch_end(self, *args: Any) -> None:
            if self.global_step == 5:
                raise KeyboardInterrupt

    module = Interrupting()
    with pytest.raises(SystemExit):
        fit(module, callback())
    assert module(torch.zeros(1, 1, 8, 8)).shape == (1, 4) and not any(m._forward_hooks for m in module.modules())


def test_hooks_registered_in_mid_training_do_not_stop_pruning() -> None:
    class Curious(Classifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.global_step == 4:
                self.network[2].register_forward_hook(lambda module, args, output: (output.detach(), None)[1])

    pruning = callback()
    fit(Curious(), pruning)
    assert len(pruning.history) == 4


# --- compiled networks ----------------------------------------------------------------------------------------------


def compiled_parts(module: Classifier) -> Classifier:
    module.network = torch.compile(module.network, backend="eager")
    return module


@pytest.mark.parametrize(
    "compile_", [compiled_parts, lambda module: torch.compile(module, backend="eager")], ids=["parts", "whole"]
)
def test_compiled_networks(compile_: Any) -> None:
    plain, module = Classifier(), Classifier()
    compiled = compile_(copy.deepcopy(module))
    fit(plain, callback())
    fit(compiled, callback())
    assert [tuple(p.shape) for p in compiled.parameters()] == [tuple(p.shape) for p in plain.parameters()]


def test_compiled_networks_are_compiled_anew_after_every_prune() -> None:
    compilations = []

    def backend(graph: Any, example_inputs: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    module = Classifier()
    module.network = torch.compile(module.network, backend=backend)
    pruning = callback(every_n_steps=1, filters_per_prune=1, max_prunes=14, validate_after_prune=False)
    trainer(pruning, max_epochs=2).fit(module, loader())
    assert len(compilations) >= len(pruning.history) == 14


def test_the_old_import_name_works() -> None:
    old = pytest.importorskip("pytorch_lightning")
    namespace = {**vars(Classifier)}
    Old = type(
        "Old", (old.LightningModule,), {k: v for k, v in namespace.items() if k not in ("__dict__", "__weakref__")}
    )

    def init(self: Any) -> None:
        old.LightningModule.__init__(self)
        reference = Classifier()
        self.network, self.optimizer, self.lr = reference.network, None, reference.lr

    Old.__init__ = init
    module, pruning = Old(), callback()
    run = old.Trainer(
        accelerator="cpu", callbacks=[pruning], max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    run.fit(module, loader(), loader(seed=1))
    assert pruning.history and count(module) == pruning.history[-1]["params"]
