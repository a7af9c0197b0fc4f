"""`stop_if`: pruning waits for validations, and what spoils a metric is taken back."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.wrappers import ClasswiseWrapper

from lightning_taylor_prune import TaylorPruningCallback
from lightning_taylor_prune.callbacks.accuracy_stop import TakenBack
from tests.distributed import run_ranks
from tests.lightning_modules import Classifier, TwoStage, loader, small_network, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")


class Scripted(Classifier):
    """Logs an accuracy that follows from its size, or from the step, so that a test knows which prune spoils it."""

    def __init__(self, accuracy: Callable[[Scripted], float], **kwargs: Any) -> None:
        super().__init__(small_network(width=8), **kwargs)
        self.accuracy, self.logs_own = accuracy, False

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", 0.9 if self.logs_own and self.global_rank else self.accuracy(self))
        self.log("val_loss", 1 - self.accuracy(self))


def spoiled_below(params: int) -> Callable[[Scripted], float]:
    return lambda module: 0.9 if sum(p.numel() for p in module.parameters()) >= params else 0.5


class Watching(pl.Callback):
    """Notes the network that held in a validation last, bit for bit, and the one that training went on with."""

    def __init__(self, pruning: TaylorPruningCallback) -> None:
        self.pruning = pruning
        self.held: Any = None
        self.after: Any = None

    def good(self, trainer: pl.Trainer) -> bool:
        return bool(trainer.callback_metrics["val_acc"] > 0.8)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.after is None and self.good(trainer):
            self.held = state_of(trainer, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if self.pruning.stop_reason is not None and self.after is None:
            self.after = state_of(trainer, pl_module)


def state_of(trainer: pl.Trainer, module: pl.LightningModule) -> tuple[dict[str, Tensor], dict[str, Any]]:
    names = {id(p): name for name, p in module.named_parameters()}
    tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    state = trainer.optimizers[0].state
    return tensors, {
        f"{names[id(p)]}.{key}": value.clone()
        for p, values in state.items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }


def run(callback: TaylorPruningCallback, module: pl.LightningModule, *more: pl.Callback, **options: Any) -> pl.Trainer:
    fitting = trainer(callback, more_callbacks=list(more), **{"max_epochs": 4, **options})
    fitting.fit(module, loader(), loader(8))
    return fitting


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def pruning(stop_if: Any, **arguments: Any) -> TaylorPruningCallback:
    return TaylorPruningCallback(
        **{"every_n_steps": 3, "filters_per_prune": 2, "max_prunes": 6, "stop_if": stop_if, **arguments}
    )


DROP = {"val_acc": {"drop": 0.02}}


@pytest.mark.parametrize("optimizer_state", ["reset", "slice"])
@pytest.mark.parametrize("optimizer", [None, lambda p: torch.optim.AdamW(p, 1e-2)], ids=["SGD", "AdamW"])
def test_the_last_network_that_held_comes_back(optimizer: Any, optimizer_state: str) -> None:
    callback = pruning(DROP, optimizer_state=optimizer_state)
    watching, module = Watching(callback), Scripted(spoiled_below(900), optimizer=optimizer)
    run(callback, module, watching)
    taken = [row["taken_back"] for row in callback.history]
    assert len(taken) > 1 and taken.index(True) == len(taken) - 1 and all(map(same, watching.after, watching.held))


def test_the_unpruned_network_comes_back_if_the_first_prune_spoils_it() -> None:
    callback = pruning(DROP)
    watching, module = Watching(callback), Scripted(spoiled_below(1340))
    run(callback, module, watching)
    assert callback.filters_after == callback.filters_before == callback.groups.filters
    assert [row["taken_back"] for row in callback.history] == [True] and all(map(same, watching.after, watching.held))


class SavesEverywhere(pl.Callback):
    """Writes a checkpoint at the end of every batch, validation and epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Path] = []

    def _save(self, trainer: pl.Trainer, when: str) -> None:
        if not trainer.sanity_checking:
            self.files.append(self.folder / f"{len(self.files):02}-{trainer.global_step}-{when}.ckpt")
            trainer.save_checkpoint(self.files[-1])

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._save(trainer, "batch")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer, "epoch")


def equal_batches(count: int = 4) -> DataLoader:
    """Batches that are all the same: a Trainer that resumes within an epoch begins the epoch's data anew."""
    images, labels = next(iter(loader()))
    return DataLoader(TensorDataset(images.repeat(count, 1, 1, 1), labels.repeat(count)), len(images))


def outcome(callback: TaylorPruningCallback, fitting: pl.Trainer, module: pl.LightningModule) -> Any:
    history = [{**row, "metrics": None} for row in callback.history]
    return history, callback.stop_reason, state_of(fitting, module)


def is_same(a: Any, b: Any) -> bool:
    return a[:2] == b[:2] and all(map(same, a[2], b[2]))


RUNS: dict[str, dict[str, Any]] = {
    "after each prune": {"stop_if": {"val_acc": {"drop": 0.02, "patience": 1}}},
    "with patience": {"stop_if": {"val_acc": {"drop": 0.02, "patience": 2}}, "optimizer_state": "slice"},
    "ordinary validations": {"stop_if": {"val_loss": {"above": 0.2}}, "validate_after_prune": False},
    "last prune": {"stop_if": {"val_acc": {"drop": 0.02}}, "max_prunes": 2, "start_step": 1},
}


@pytest.mark.parametrize("case", RUNS)
def test_a_run_resumed_from_any_checkpoint_ends_as_if_it_had_not_been_stopped(case: str, tmp_path: Path) -> None:
    def fit(*more: pl.Callback, resume: Path | None = None) -> Any:
        callback = pruning(every_n_steps=2, **RUNS[case])
        module = Scripted(spoiled_below(1000), optimizer=lambda p: torch.optim.Adam(p, 1e-2))
        fitting = trainer(callback, more_callbacks=list(more), max_epochs=3)
        fitting.fit(module, equal_batches(3), loader(8), ckpt_path=resume, weights_only=True)
        return outcome(callback, fitting, module)

    saving = SavesEverywhere(tmp_path)
    whole = fit(saving)
    others = [file.name for file in saving.files if not is_same(fit(resume=file), whole)]
    assert (whole[0][-1]["taken_back"], others) == (True, [])


def test_an_average_beside_the_network_comes_back_too() -> None:
    callback, averaging = pruning(DROP), EMAWeightAveraging(decay=0.5)

    class Averages(Watching):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            super().on_validation_end(trainer, pl_module)
            self.held = (self.held[0], average()) if self.after is None and self.good(trainer) else self.held

        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
            super().on_train_batch_start(trainer, pl_module)
            if self.after is not None and len(self.after) == 2:
                self.after = (self.after[0], average(), "seen")

    def average() -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in averaging._average_model.module.named_parameters()}

    watching = Averages(callback)
    run(callback, Scripted(spoiled_below(900)), watching, averaging)
    assert all(map(same, watching.after[:2], watching.held))


class Swapping(pl.Callback):
    """Validates another network of the module's sizes, as averages that users write do."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.own = copy.deepcopy(pl_module.state_dict())
        for parameter in pl_module.parameters():
            parameter.data.zero_()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.load_state_dict(self.own)


def test_weights_that_others_exchange_for_a_validation_are_not_what_is_kept() -> None:
    callback = pruning(DROP)
    watching, module = Watching(callback), Scripted(spoiled_below(900))
    run(callback, module, Swapping(), watching)
    assert callback.history[-1]["taken_back"] and all(map(same, watching.after, watching.held))


class Holding(pl.Callback):
    """Keeps the parameters, and a number for each of theirs, in its own ways."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.parameters = list(pl_module.parameters())
        self.masks = {p: torch.ones_like(p) for p in pl_module.parameters()}
        self.pairs = [(p, p.detach().clone()) for p in pl_module.parameters()]


def test_objects_that_hold_parameters_hold_those_that_came_back() -> None:
    callback, holding, module = pruning(DROP), Holding(), Scripted(spoiled_below(900))
    run(callback, module, holding)
    own = [id(p) for p in module.parameters()]
    held = [list(map(id, holding.parameters)), list(map(id, holding.masks)), [id(p) for p, _ in holding.pairs]]
    shapes = [p.shape for p in module.parameters()]
    beside = [[value.shape for value in holding.masks.values()], [value.shape for _, value in holding.pairs]]
    assert callback.history[-1]["taken_back"] and held == [own] * 3 and beside == [shapes] * 2


def test_schedulers_and_the_count_of_steps_go_on() -> None:
    class Scheduled(Scripted):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 1.0, momentum=0.9)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    callback, module = pruning(DROP), Scheduled(spoiled_below(900))
    fitting = run(callback, module, max_steps=12)
    optimizer = fitting.optimizers[0]
    assert callback.history[-1]["taken_back"]
    assert (fitting.global_step, optimizer.param_groups[0]["lr"]) == (12, 0.5**12)


TRAINERS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16-mixed"},
    "accumulation": {"accumulate_grad_batches": 2, "max_epochs": 8},
    "validation inside a window": {"accumulate_grad_batches": 3, "max_epochs": 8, "val_check_interval": 1},
    "clipping": {"gradient_clip_val": 0.1},
    "whole sanity check": {"num_sanity_val_steps": -1},
}


@pytest.mark.parametrize("name", TRAINERS)
def test_whatever_the_trainer_does(name: str) -> None:
    callback = pruning(DROP, optimizer_state="slice")
    watching, module = Watching(callback), Scripted(spoiled_below(900))
    run(callback, module, watching, **TRAINERS[name])
    assert callback.history[-1]["taken_back"] and all(map(same, watching.after, watching.held))


def test_a_whole_sanity_check_tells_what_the_unpruned_network_is_worth() -> None:
    callback = pruning(DROP)
    run(callback, Scripted(spoiled_below(900)), num_sanity_val_steps=-1)
    assert callback.history[0]["step"] == 3


def test_without_a_validation_before_the_first_prune_one_is_run() -> None:
    callback, steps = pruning(DROP, max_prunes=1), []
    module = Scripted(lambda module: steps.append(module.global_step) or 0.9)
    run(callback, module, num_sanity_val_steps=0, check_val_every_n_epoch=10, max_epochs=1)
    assert (sorted(set(steps)), callback.history[0]["step"]) == ([3, 4], 4)


def by_step(good: Callable[[int], bool]) -> Callable[[Scripted], float]:
    return lambda module: 0.9 if good(module.global_step) else 0.5


@pytest.mark.parametrize(
    ("good", "steps", "taken"),
    [
        (lambda step: step != 4, [4, 7, 9], [False, False, False]),
        (lambda step: step < 4, [4], [True]),
    ],
    ids=["recovers", "does not recover"],
)
def test_pruning_waits_until_the_network_has_recovered(good: Any, steps: list[int], taken: list[bool]) -> None:
    callback = pruning({"val_acc": {"drop": 0.02, "patience": 3}}, max_prunes=3)
    run(callback, Scripted(by_step(good)), num_sanity_val_steps=0, check_val_every_n_epoch=10, max_epochs=3)
    assert ([row["step"] for row in callback.history], [row["taken_back"] for row in callback.history]) == (
        steps,
        taken,
    )


def test_training_that_ends_before_the_network_has_recovered_gives_the_one_that_held() -> None:
    callback = pruning({"val_acc": {"drop": 0.02, "patience": 99}})
    module = Scripted(spoiled_below(900))
    run(callback, module)
    assert sum(p.numel() for p in module.parameters()) >= 900 and "training is over" in callback.stop_message


def test_a_metric_below_its_bound_is_waited_for_before_the_first_prune() -> None:
    callback = pruning({"val_acc": {"below": 0.8}}, max_prunes=1)
    run(callback, Scripted(by_step(lambda step: step > 6)), check_val_every_n_epoch=10)
    assert callback.history[0]["step"] == 10


def test_the_last_of_all_prunes_is_judged_too() -> None:
    callback, module = pruning(DROP, max_prunes=3), Scripted(spoiled_below(900))
    run(callback, module)
    assert "val_acc is 0.5" in callback.stop_message and sum(p.numel() for p in module.parameters()) >= 900


class ByClass(Classifier):
    """Logs an accuracy for each class, as the README shows; one class is lost where the network is small."""

    def __init__(self) -> None:
        super().__init__(small_network(width=8))
        labels = ["cat", "dog", "bird", "car"]
        self.accuracies = ClasswiseWrapper(MulticlassAccuracy(4, average=None), labels=labels, prefix="val_acc_")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        answers = batch[1].clone()
        if spoiled_below(900)(self) < 0.8:
            answers[answers == 2] = 0
        self.log_dict(self.accuracies(answers, batch[1]), on_epoch=True)


def test_the_worst_class_stops_pruning() -> None:
    callback, module = pruning({"val_acc_*": {"class_drop": 0.1}}), ByClass()
    run(callback, module)
    assert callback.history[-1]["taken_back"] and "val_acc_bird is 0" in callback.stop_message


class Silent(Classifier):
    """Validates without a word."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(batch)


REFUSED: dict[str, tuple[type[pl.LightningModule], dict[str, Any], dict[str, Any], str]] = {
    "no loader": (Classifier, {"validation": None}, DROP, "there is no validation: define `validation_step`"),
    "no batches": (Classifier, {"limit_val_batches": 0}, DROP, "do not set `limit_val_batches=0`"),
    "empty loader": (Classifier, {"validation": []}, DROP, "the Trainer ran none"),
    "never logged": (Classifier, {}, {"acc": {"drop": 0.1}}, "it logs: val_acc, val_loss"),
    "nothing logged": (Silent, {}, DROP, "it logs: nothing"),
    "training's metric": (Classifier, {}, {"train_loss": {"above": 1}}, "to log 'train_loss'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_training_that_cannot_be_judged_is_refused_in_one_line(case: str) -> None:
    kind, options, stop_if, words = REFUSED[case]
    validation = options.get("validation", loader())
    fitting = trainer(pruning(stop_if), **{name: value for name, value in options.items() if name != "validation"})
    with pytest.raises(MisconfigurationException) as caught:
        fitting.fit(kind(), loader(), validation)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_argument_that_cannot_be_meant_is_refused_as_lightning_does() -> None:
    with pytest.raises(MisconfigurationException, match="at most 1"):
        pruning({"val_acc": {"drop": 2}})


class Last(pl.Callback):
    """Notes the network before each batch, and as an exception ends training."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.before = state_of(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.after = state_of(trainer, pl_module)
        self.groups = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}


def test_a_rollback_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(step: TakenBack) -> None:
        raise OSError("no memory")

    callback, last, module = pruning(DROP), Last(), Scripted(spoiled_below(900))
    monkeypatch.setattr(TakenBack, "commit", fail)
    with pytest.raises(OSError, match="no memory"):
        run(callback, module, last)
    assert all(map(same, last.before, last.after)) and last.groups == {id(p) for p in module.parameters()}
    assert callback.groups.filters["network.3"] == module.network[3].out_channels


class TwoTargets(TwoStage):
    """Two parts, each pruned by a callback of its own."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", 0.9 if self.network[0].out_channels > 5 else 0.5)


def test_what_another_callback_prunes_is_not_brought_back() -> None:
    module = TwoTargets()
    first = pruning(DROP, target="network", max_prunes=3)
    second = TaylorPruningCallback(every_n_steps=4, filters_per_prune=2, target="head", max_prunes=3)
    run(first, module, second)
    assert first.history[-1]["taken_back"] and module.head[2].out_features == second.filters_after["head.2"] < 12


def train_rank(logs_own: bool = False, **options: Any) -> dict[str, Any]:
    """Train in this rank of a job; every rank returns what must be equal everywhere."""
    callback = pruning(DROP, optimizer_state="slice", rank_timeout=20)
    module = Scripted(spoiled_below(900), optimizer=lambda p: torch.optim.Adam(p, 1e-2))
    module.logs_own = logs_own
    watching = Watching(callback)
    distributed = DDPStrategy(process_group_backend="gloo", static_graph=options.pop("static_graph", False))
    run(callback, module, watching, strategy=distributed, devices=2, **options)
    return {
        "came back": all(map(same, watching.after, watching.held)),
        "taken": [row["taken_back"] for row in callback.history],
        "parameters": [p.detach().clone() for p in module.parameters()],
        "reason": callback.stop_reason,
    }


DISTRIBUTED: dict[str, dict[str, Any]] = {
    "static graph, a metric that each rank has of its own": {"static_graph": True, "logs_own": True},
    "bf16, accumulation": {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "max_epochs": 8},
}


def train_ranks() -> dict[str, Any]:
    return {name: train_rank(**options) for name, options in DISTRIBUTED.items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    results = run_ranks(train_ranks, tmp_path_factory.mktemp("ranks"), 2, timeout=200)
    assert all(isinstance(result, dict) for result in results), results
    return results


@pytest.mark.parametrize("case", DISTRIBUTED)
def test_all_ranks_take_the_same_back(case: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[case] for rank in ranks)
    assert first["taken"][-1] and first["came back"] and first["reason"] == second["reason"]
    assert all(torch.equal(a, b) for a, b in zip(first["parameters"], second["parameters"], strict=True))


KILLED = """
import os, sys
from pathlib import Path
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.callbacks.test_accuracy_stop import *

class Killed(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if len(sys.argv) > 2 and trainer.global_step == int(sys.argv[2]):
            os.kill(os.getpid(), 9)

folder = Path(sys.argv[1])
callback = pruning(DROP, every_n_steps=2)
module = Scripted(spoiled_below(1000), optimizer=lambda p: torch.optim.Adam(p, 1e-2))
saving = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)
fitting = trainer(callback, more_callbacks=[saving, Killed()], max_epochs=3, enable_checkpointing=True)
fitting.fit(module, equal_batches(3), loader(8), ckpt_path="last", weights_only=True)
torch.save(outcome(callback, fitting, module), folder / "outcome.pt")
"""


@pytest.mark.slow
def test_a_run_that_is_killed_as_the_verdict_is_due_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    def train(folder: Path, *kill: int) -> int:
        command = [sys.executable, "-c", KILLED, str(folder), *map(str, kill)]
        return subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True).returncode

    codes = [train(tmp_path / "whole"), train(tmp_path / "killed", 4), train(tmp_path / "killed")]
    whole, killed = (torch.load(tmp_path / name / "outcome.pt", weights_only=False) for name in ("whole", "killed"))
    assert codes == [0, -9, 0] and whole[0][-1]["taken_back"] and is_same(whole, killed)
