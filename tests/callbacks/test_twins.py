"""Averages of the network inside the module are pruned with it, teachers are not touched."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_taylor_prune import TaylorPruningCallback
from lightning_taylor_prune.errors import PruningWarning
from tests.lightning_modules import loader, small_network, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Pair(pl.LightningModule):
    """A trained network beside one that no gradient reaches; both run in training."""

    def __init__(self) -> None:
        super().__init__()
        self.online = small_network()
        self.other = self.build_other()

    def build_other(self) -> nn.Module:
        return copy.deepcopy(self.online).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            wanted = self.other(batch[0])
        return F.cross_entropy(self.online(batch[0]), batch[1]) + (self.online(batch[0]) - wanted).square().mean()

    @torch.no_grad()
    def on_train_batch_end(self, *args: Any) -> None:
        self.follow()

    def follow(self) -> None:
        for own, new in zip(self.other.parameters(), self.online.parameters(), strict=True):
            own.lerp_(new, 0.01)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.online.parameters(), 0.05, momentum=0.9)


class WithoutFreezing(Pair):
    def build_other(self) -> nn.Module:
        return copy.deepcopy(self.online)


class ByName(Pair):
    def follow(self) -> None:
        new = dict(self.online.named_parameters())
        for name, own in self.other.named_parameters():
            own.mul_(0.999).add_(new[name], alpha=0.001)


class Loaded(Pair):
    def build_other(self) -> nn.Module:
        other = small_network(seed=1).requires_grad_(False)
        other.load_state_dict(self.online.state_dict())
        return other


class BuiltApart(Pair):
    def build_other(self) -> nn.Module:
        return small_network(seed=1).requires_grad_(False)


class NeverRun(Pair):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.online(batch[0]), batch[1])


class FollowsLate(NeverRun):
    def follow(self) -> None:
        if self.global_step > 5:
            super().follow()


class Averaged(NeverRun):
    def build_other(self) -> nn.Module:
        return AveragedModel(self.online)

    def follow(self) -> None:
        self.other.update_parameters(self.online)


class CopiedLate(Pair):
    """A target network, as in reinforcement learning: called, and copied anew after many steps."""

    def build_other(self) -> nn.Module:
        return nn.Sequential(OrderedDict(target=super().build_other()))

    def follow(self) -> None:
        if self.global_step == 8:
            self.other.target.load_state_dict(self.online.state_dict())


class CopiedLateWithoutAName(Pair):
    """As above, but only the code of the training says what it is."""

    def follow(self) -> None:
        if self.global_step == 8:
            self.other.load_state_dict(self.online.state_dict())


class AveragedLate(Pair):
    """A mean teacher that stands still at first."""

    def follow(self) -> None:
        if self.current_epoch:
            super().follow()

    def on_before_zero_grad(self, optimizer: Any) -> None:
        for own, new in zip(self.other.parameters(), self.online.parameters(), strict=True):
            own.data.lerp_(new.data, float(self.current_epoch) * 0.1)


@torch.no_grad()
def soft_update(source: nn.Module, target: nn.Module, share: float) -> None:
    for own, new in zip(target.parameters(), source.parameters(), strict=True):
        own.lerp_(new, share)


class FollowsByAFunction(Pair):
    def follow(self) -> None:
        if self.global_step > 5:
            soft_update(self.online, self.other, share=0.1)


class CopiedBeforeTheCheckpoint(Pair):
    """Changes once, before a checkpoint that is resumed before the first prune; no code names both networks."""

    def follow(self) -> None:
        if self.global_step == 2:
            soft_update(*self.children(), share=0.5)


class Hidden(Pair):
    """No code of the class names both networks."""

    def follow(self) -> None:
        if self.global_step > 5:
            soft_update(*self.children(), share=0.1)


class Contrastive(Pair):
    """Keeps a queue of what the momentum encoder has put out, which is updated before the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.randn(4, 16))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        query = self.online(batch[0])
        with torch.no_grad():
            self.follow()
            key = self.other(batch[0])
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ self.queue.clone()], 1)
        self.queue = torch.cat([self.queue[:, len(key) :], key.T], 1)
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))

    def on_train_batch_end(self, *args: Any) -> None:
        pass


class Queued(Pair):
    """As MoCo is written: new `.data`, a place in the queue that is read as a number, and batches that are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.randn(4, 16, generator=torch.Generator().manual_seed(0)))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def keys(self, x: Tensor) -> Tensor:
        for own, new in zip(self.other.parameters(), self.online.parameters(), strict=True):
            own.data = own.data * 0.99 + new.data * 0.01
        order = torch.randperm(len(x))
        return F.normalize(self.other(x[order])[order.argsort()], dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.manual_seed(self.global_step)
        query = F.normalize(self.online(batch[0] + 0.1 * torch.randn_like(batch[0])), dim=1)
        key, place = self.keys(batch[0]), int(self.place)
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ self.queue.clone()], 1)
        self.queue[:, place : place + len(key)] = key.T
        self.place[0] = (place + len(key)) % self.queue.shape[1]
        return F.cross_entropy(logits / 0.1, torch.zeros(len(logits), dtype=torch.long))

    def on_train_batch_end(self, *args: Any) -> None:
        pass


class Predicting(Pair):
    """The trained side has a layer more; the follower runs in every fourth step, and not in the first."""

    def __init__(self) -> None:
        super().__init__()
        self.predictor = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            wanted = self.other(batch[0]) if batch_idx % 4 == 3 else torch.ones(len(batch[0]), 4)
        return -F.cosine_similarity(self.predictor(self.online(batch[0])), wanted).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([*self.online.parameters(), *self.predictor.parameters()], 0.05)


FOLLOWERS = [
    Pair,
    WithoutFreezing,
    ByName,
    Loaded,
    BuiltApart,
    NeverRun,
    FollowsLate,
    Averaged,
    CopiedLate,
    CopiedLateWithoutAName,
    AveragedLate,
    FollowsByAFunction,
    Contrastive,
    Queued,
    Predicting,
]


class Teacher(Pair):
    def build_other(self) -> nn.Module:
        return small_network(seed=1).requires_grad_(False)

    def follow(self) -> None:
        pass


class OwnPast(Teacher):
    """The network as it was when training began is the teacher."""

    def build_other(self) -> nn.Module:
        return copy.deepcopy(self.online).requires_grad_(False)


class NotFrozen(Teacher):
    def build_other(self) -> nn.Module:
        return small_network(seed=1)


class OtherNetwork(Teacher):
    def build_other(self) -> nn.Module:
        return small_network(width=6).requires_grad_(False)


TEACHERS = [Teacher, OwnPast, NotFrozen, OtherNetwork]


def shapes(module: nn.Module) -> list[torch.Size]:
    return [parameter.shape for parameter in module.parameters()]


class InBuffers(NeverRun):
    """As latent diffusion writes it: names of buffers have no dots."""

    def build_other(self) -> nn.Module:
        other = nn.Module()
        for name, parameter in self.online.named_parameters():
            other.register_buffer(name.replace(".", ""), parameter.detach().clone())
        return other

    def follow(self) -> None:
        for own, new in zip(self.other.buffers(), self.online.parameters(), strict=True):
            own.lerp_(new, 0.1)


class InAList(NeverRun):
    def build_other(self) -> nn.Module:
        several = (parameter.detach().clone() for parameter in self.online.parameters())
        return nn.ParameterList([nn.Parameter(parameter, requires_grad=False) for parameter in several])


@pytest.mark.parametrize("cls", [InBuffers, InAList])
def test_loose_tensors_of_the_module_are_cut_with_the_network(cls: type[Pair]) -> None:
    module, _ = pruned(cls, "taylor")
    assert [t.shape for t in [*module.other.parameters(), *module.other.buffers()]] == shapes(module.online)


def pruned(cls: type[Pair], criterion: str) -> tuple[Pair, list[torch.Size]]:
    module = cls()
    before = shapes(module.other)
    callback = TaylorPruningCallback(every_n_steps=3, filters_per_prune=2, criterion=criterion)
    trainer(callback, max_epochs=2).fit(module, loader())
    assert shapes(module.online) != shapes(small_network()) and len(callback.history) == 5
    return module, before


@pytest.mark.parametrize("criterion", ["taylor", "magnitude"])
@pytest.mark.parametrize("cls", FOLLOWERS)
def test_what_follows_the_network_is_pruned_with_it(cls: type[Pair], criterion: str) -> None:
    module, _ = pruned(cls, criterion)
    assert shapes(module.other) == shapes(module.online)


@pytest.mark.filterwarnings("ignore:`other` is built as `online`")
@pytest.mark.parametrize("criterion", ["taylor", "taylor_examples", "magnitude", "random"])
@pytest.mark.parametrize("cls", TEACHERS)
def test_a_teacher_is_not_touched(cls: type[Pair], criterion: str) -> None:
    module, before = pruned(cls, criterion)
    assert shapes(module.other) == before


def test_the_user_names_a_follower_inside_the_module() -> None:
    module = Hidden()
    callback = TaylorPruningCallback(every_n_steps=3, filters_per_prune=2, copies=[lambda module: module.other])
    trainer(callback).fit(module, loader())
    assert shapes(module.other) == shapes(module.online) != shapes(small_network())


def test_what_is_like_the_network_but_stands_still_is_warned_of_once() -> None:
    with pytest.warns(PruningWarning) as caught:
        pruned(OwnPast, "taylor")
    assert [str(w.message).partition(":")[0] for w in caught if w.category is PruningWarning] == [
        "`other` is built as `online` and has values like it, but has not changed so far"
    ]


def test_named_modules_that_follow_nothing_are_warned_of() -> None:
    callback = TaylorPruningCallback(every_n_steps=3, copies=[lambda module: module.other])
    with pytest.warns(PruningWarning, match="`other` is one of `copies`"):
        trainer(callback).fit(OtherNetwork(), loader())


class Updates(pl.Callback):
    """Copies the network anew once in a while."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == 8:
            self.renew(pl_module)

    def renew(self, module: Any) -> None:
        module.other.load_state_dict(module.online.state_dict())


def test_a_callback_may_be_what_updates_the_follower() -> None:
    module, callback = OwnPast(), TaylorPruningCallback(every_n_steps=3, filters_per_prune=2)
    trainer(more_callbacks=[callback, Updates()]).fit(module, loader())
    assert shapes(module.other) == shapes(module.online) != shapes(small_network())


class HardlyLearning(Pair):
    """So that the follower has nearly the values of the network, wherever both keep the same positions."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.online.parameters(), 1e-7)


def test_the_follower_keeps_the_positions_that_the_network_keeps() -> None:
    module = HardlyLearning()
    trainer(TaylorPruningCallback(every_n_steps=3), limit_train_batches=4).fit(module, loader())
    pairs = zip(module.other.parameters(), module.online.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("every", [3, 10], ids=["after prunes", "before the first prune"])
@pytest.mark.parametrize("cls", [Pair, CopiedBeforeTheCheckpoint, Queued])
def test_a_resumed_run_prunes_the_same(cls: type[Pair], every: int, tmp_path: Path) -> None:
    def run(resume: str | None, epochs: int) -> Pair:
        module, saving = cls(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        callbacks = [TaylorPruningCallback(every_n_steps=every, filters_per_prune=2, max_prunes=None), saving]
        fitting = trainer(more_callbacks=callbacks, max_epochs=epochs, enable_checkpointing=True)
        fitting.fit(module, loader(), ckpt_path=resume)
        return module

    whole = run(None, 2)
    resumed = run(str(tmp_path / "epoch=0.ckpt"), 2)
    states = whole.state_dict(), resumed.state_dict()
    assert shapes(whole.other) == shapes(whole.online) != shapes(small_network())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
