"""Checkpoints of pruned networks: loaded, resumed, and resumed after sudden death."""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import random
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_taylor_prune import PlanError, TaylorPruningCallback, find_groups, load_pruned, prune_
from lightning_taylor_prune.pruning.checkpoint import fit_shapes_
from lightning_taylor_prune.pruning.loading import fit_checkpoint_, make_loadable
from tests.lightning_modules import Adversarial, Classifier, loader, small_network, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")
EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def grouped_network() -> nn.Sequential:
    """Sizes that the shape of a weight does not tell: groups of convolutions and of a normalisation."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.GroupNorm(6, 12), nn.Conv2d(12, 12, 3, groups=6), nn.ReLU(), nn.Conv2d(12, 8, 1),
        nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip


def pruned(make: Any) -> nn.Module:
    model = make()
    model(EXAMPLE)
    groups = find_groups(model, EXAMPLE)
    prune_(model, groups.plan({g.name: range(g.num_channels // 2) for g in groups}))
    return model.eval()


# --- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [small_network, grouped_network], ids=["convolutions", "groups"])
def test_pruned_weights_load_into_a_fresh_network(make: Any, tmp_path: Path) -> None:
    model, fresh = pruned(make), make()
    fresh(EXAMPLE)
    torch.save(model.state_dict(), tmp_path / "pruned.pt")
    assert torch.equal(load_pruned(tmp_path / "pruned.pt", fresh).eval()(EXAMPLE), model(EXAMPLE))


def test_a_larger_state_loads_into_a_pruned_network() -> None:
    model, whole = pruned(small_network), small_network().eval()
    make_loadable(model)
    model.load_state_dict(whole.state_dict())
    assert torch.equal(model(EXAMPLE), whole(EXAMPLE))


def test_fitting_shapes_keeps_flags_and_ties() -> None:
    model = small_network()
    model[0].weight.requires_grad_(False)
    model[0].weight.no_wd = True
    fit_shapes_(model, {"0.weight": (5, 1, 3, 3), "0.bias": (5,)})
    assert (model[0].out_channels, model[0].weight.requires_grad, model[0].weight.no_wd) == (5, False, True)


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "other.pt")
    with pytest.raises(PlanError, match="checkpoint of another network"):
        load_pruned(tmp_path / "other.pt", small_network())


# --- with a Trainer -------------------------------------------------------------------------------------------------


def callback(**kwargs: Any) -> TaylorPruningCallback:
    defaults: dict[str, Any] = {"every_n_steps": 3, "filters_per_prune": 2, "max_prunes": 6, "optimizer_state": "slice"}
    return TaylorPruningCallback(**{**defaults, **kwargs})


def adam_classifier() -> Classifier:
    return Classifier(optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-2))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Lightning checkpoint after a few prunes."""
    folder = tmp_path_factory.mktemp("checkpoint")
    run = trainer(callback(), max_epochs=2)
    run.fit(adam_classifier(), loader())
    run.save_checkpoint(folder / "pruned.ckpt")
    return folder / "pruned.ckpt"


def state_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_load_pruned_reads_a_lightning_checkpoint(checkpoint: Path) -> None:
    assert equal(load_pruned(checkpoint, Classifier()).state_dict(), state_of(checkpoint))


def test_load_pruned_reads_a_part_of_a_checkpoint(checkpoint: Path) -> None:
    backbone = load_pruned(checkpoint, small_network())
    assert equal({f"network.{k}": v for k, v in backbone.state_dict().items()}, state_of(checkpoint))


class SelfLoading(Classifier):
    """As a user writes it who calls `load_from_checkpoint`."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        fit_checkpoint_(self, checkpoint)


def test_load_from_checkpoint(checkpoint: Path) -> None:
    assert equal(SelfLoading.load_from_checkpoint(checkpoint).state_dict(), state_of(checkpoint))


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_evaluation_from_a_checkpoint(verb: str, checkpoint: Path) -> None:
    module = Classifier()
    module.test_step = module.validation_step
    module.predict_step = lambda batch, batch_idx: module(batch[0])
    getattr(trainer(callback()), verb)(module, loader(), ckpt_path=checkpoint)
    assert equal(module.state_dict(), state_of(checkpoint))


def test_module_can_load_pruned_states_only_while_a_trainer_runs(checkpoint: Path) -> None:
    module = Classifier()
    trainer(callback()).validate(module, loader(), ckpt_path=checkpoint)
    assert not module._load_state_dict_pre_hooks


@pytest.mark.parametrize("optimizer_state", ["reset", "slice"])
@pytest.mark.parametrize("criterion", ["taylor", "taylor_activation", "taylor_gate"])
@pytest.mark.parametrize("accumulated", [1, 3], ids=["", "accumulating"])
def test_resumed_at_an_epoch_end_equals_uninterrupted(
    optimizer_state: Any, criterion: str, accumulated: int, tmp_path: Path
) -> None:
    def run(ckpt_path: Path | None = None, **kwargs: Any) -> tuple[Any, Any]:
        pl.seed_everything(0, verbose=False)
        module, pruning = adam_classifier(), callback(optimizer_state=optimizer_state, criterion=criterion)
        fit = trainer(pruning, max_epochs=4, accumulate_grad_batches=accumulated, **kwargs)
        fit.fit(module, loader(), loader(seed=1), ckpt_path=ckpt_path)
        return module.state_dict(), pruning.history

    saving = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    whole = run(more_callbacks=[saving], enable_checkpointing=True)
    resumed = run(tmp_path / "epoch=1.ckpt")
    assert equal(whole[0], resumed[0]) and whole[1] == resumed[1]


def test_manual_optimization_resumes(tmp_path: Path) -> None:
    def run(ckpt_path: Path | None = None, **kwargs: Any) -> Any:
        module = Adversarial()
        trainer(callback(filters_per_prune=4), max_epochs=4, **kwargs).fit(module, loader(), ckpt_path=ckpt_path)
        return module.state_dict()

    saving = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    whole = run(more_callbacks=[saving], enable_checkpointing=True)
    assert equal(whole, run(tmp_path / "epoch=1.ckpt"))


# --- sudden death ---------------------------------------------------------------------------------------------------


class SteppedClassifier(Classifier):
    """Takes its data by the step count: a plain DataLoader begins anew when a training is resumed in mid-epoch."""

    batches = tuple(loader())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(self.batches[self.global_step % len(self.batches)], batch_idx)


class Losses(pl.Callback):
    """The loss of every optimizer step, in the checkpoint."""

    def __init__(self) -> None:
        self.values: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values[trainer.global_step] = float(outputs["loss"])

    def state_dict(self) -> dict[str, Any]:
        return {"values": dict(self.values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = dict(state["values"])


def train_to_the_end(folder: Path) -> None:
    """Train with a checkpoint after every step, from the last one if there is one; leave the outcome in a file."""
    pl.seed_everything(0, verbose=False)
    module = SteppedClassifier(optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-2))
    pruning, losses = callback(validate_after_prune=False, max_prunes=10), Losses()
    saving = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=1, save_last=True, filename="step")
    last = folder / "last.ckpt"
    fit = trainer(pruning, max_epochs=-1, max_steps=120, more_callbacks=[losses, saving], enable_checkpointing=True)
    fit.fit(module, loader(), ckpt_path=last if last.exists() else None)
    moments = [v for p in module.parameters() for v in fit.optimizers[0].state[p].values()]
    outcome = {"state": module.state_dict(), "moments": moments, "history": pruning.history, "losses": losses.values}
    with open(folder / "partial.pkl", "wb") as file:
        pickle.dump(outcome, file)
    os.replace(folder / "partial.pkl", folder / "outcome.pkl")


def quietly(folder: Path) -> None:
    """Train in a process of its own, whose output nobody reads."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    torch.set_num_threads(1)
    try:
        train_to_the_end(folder)
    except BaseException:
        (folder / "error.txt").write_text(traceback.format_exc())
    os._exit(0)


def train_in_a_child(folder: Path, kill_after: float | None) -> bool:
    """Train in a child process; returns whether it was killed."""
    # A server that has imported everything forks the children, so that twenty of them start in no time.
    context = mp.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    child = context.Process(target=quietly, args=(folder,))
    child.start()
    child.join(kill_after)
    if killed := child.is_alive():
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    return killed


def read(folder: Path) -> dict[str, Any]:
    assert not (folder / "error.txt").exists(), (folder / "error.txt").read_text()
    return pickle.loads((folder / "outcome.pkl").read_bytes())


def lifetime(folder: Path) -> float:
    """Seconds that a training takes which nobody kills."""
    folder.mkdir(exist_ok=True)
    start = time.monotonic()
    train_in_a_child(folder, None)
    return time.monotonic() - start


def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    lifetime(tmp_path / "warm")
    lasts, start = lifetime(whole), lifetime(whole)  # the second one finds nothing left to do
    draw, kills = random.Random(0), 0
    while kills < 20 and not (killed / "outcome.pkl").exists():
        kills += train_in_a_child(killed, start + draw.uniform(-0.2, 0.8) * (lasts - start) / 5)
    train_in_a_child(killed, None)
    expected, found = read(whole), read(killed)
    assert kills >= 10
    assert found["losses"] == expected["losses"] and found["history"] == expected["history"]
    assert equal(found["state"], expected["state"])
    assert all(torch.equal(a, b) for a, b in zip(found["moments"], expected["moments"], strict=True))
