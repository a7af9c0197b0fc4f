"""Sizes that stand as numbers in a module's code: pruned by a generated `forward`, locked without it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune import TaylorPruningCallback, find_groups, load_pruned, prune_
from lightning_taylor_prune.modules.rewrite import is_rewritten, rewrite_, unrewrite_
from tests.lightning_modules import Classifier, loader, trainer
from tests.oracles import evaluate, relative_error, zero_


class _Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.a, self.b, self.last = nn.Conv2d(6, 8, 1), nn.Conv2d(10, 8, 1), nn.Linear(8, 10)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        return self.last((self.a(a) + self.b(b)).mean((2, 3)))


class Splits(_Body):
    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).relu().split([6, 10], 1)
        return self.join(a, b)


class Slices(_Body):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.join(x[:, :6], x[:, 6:])


class Views(_Body):
    """Other code in training, a default argument, a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.wide = nn.Parameter(torch.rand(16)), nn.Linear(64, 10)

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        x = self.stem(x) * self.gain.view(1, 16, 1, 1)
        if self.training:
            x = F.dropout(x, 0.5, training=True)
        return self.wide(F.adaptive_avg_pool2d(x.relu(), 2).view(-1, 64)) * scale


class Expands(_Body):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.after = nn.Linear(1, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x.mean((2, 3))).sigmoid().expand(-1, 16).reshape(-1, 16, 1, 1)
        return self.last(self.after(self.stem(x).relu() * gate).mean((2, 3)))


class Branches(_Body):
    """Code that no generated `forward` can stand for: it asks for a value."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.join(x[:, :6], x[:, 6:]) if len(x.shape) == int(torch.tensor(4.0)) else x


def nested() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.Conv2d(5, 1, 1), Slices())


KINDS = {"split": Splits, "slice": Slices, "view": Views, "expand": Expands, "nested": nested}
EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def build(make) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


def half(groups):
    return groups.plan({g.name: range(0, g.num_channels - 1, 2) for g in groups})


def pruned(make) -> nn.Module:
    model = build(make)
    prune_(model, half(find_groups(model, EXAMPLE.double(), rewrite_hard_coded=True)))
    return model


@kinds
def test_a_generated_forward_computes_the_same(make) -> None:
    model = build(make)
    before = evaluate(model, (EXAMPLE.double(),))
    assert sum(rewrite_(module) for module in model.modules()) > 0
    assert torch.equal(evaluate(model, (EXAMPLE.double(),)), before)


@kinds
def test_pruned_equals_masked(make) -> None:
    model = build(make)
    masked = copy.deepcopy(model)
    plan = half(find_groups(model, EXAMPLE.double(), rewrite_hard_coded=True))
    zero_(masked, plan)
    prune_(model, plan)
    assert relative_error(*(evaluate(m, (EXAMPLE.double(),)) for m in (model, masked))) < 1e-10


@kinds
def test_nothing_locks_but_the_output(make) -> None:
    groups = find_groups(build(make), EXAMPLE.double(), rewrite_hard_coded=True)
    assert {entry.reason for entry in groups.locked} <= {
        "is an output of the network",
        "is not used in the forward pass",
    }


@kinds
def test_class_and_keys_stay(make) -> None:
    model = pruned(make)
    whole = build(make)
    assert list(model.state_dict()) == list(whole.state_dict())
    assert isinstance(model, type(whole))
    assert type(model).__name__ == type(whole).__name__


@kinds
def test_finding_groups_leaves_the_network_alone(make) -> None:
    model = build(make)
    before = [dict(module.__dict__) for module in model.modules()]
    find_groups(model, EXAMPLE.double(), rewrite_hard_coded=True)
    assert [module.__dict__ for module in model.modules()] == before


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
@kinds
def test_copies_run_on_themselves(make, duplicate) -> None:
    model = pruned(make)
    expected = evaluate(model, (EXAMPLE.double(),))
    twin = duplicate(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(evaluate(twin, (EXAMPLE.double(),)), expected)


def test_each_mode_has_its_own_code() -> None:
    model = pruned(Views)
    torch.manual_seed(0)
    training, evaluation = model.train()(EXAMPLE.double()), model.eval()(EXAMPLE.double())
    assert not torch.equal(training, evaluation)
    assert torch.equal(model(EXAMPLE.double(), scale=4.0), 2 * evaluation)


def test_it_trains() -> None:
    model = pruned(Views).train()
    model(EXAMPLE.double()).sum().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters() if p.grad is not None)


def test_it_is_exported() -> None:
    model = pruned(Slices).eval()
    exported = torch.export.export(model, (EXAMPLE.double(),)).module()
    assert torch.equal(exported(EXAMPLE.double()), model(EXAMPLE.double()))


@kinds
def test_it_is_traced_by_fx(make) -> None:
    model = pruned(make).eval()
    assert torch.equal(torch.fx.symbolic_trace(model)(EXAMPLE.double()), model(EXAMPLE.double()))


@kinds
def test_it_is_scripted(make) -> None:
    model = pruned(make).eval()
    torch.jit.script(build(make))  # as the original is
    assert torch.equal(torch.jit.script(model)(EXAMPLE.double()), model(EXAMPLE.double()))


@pytest.mark.parametrize("make", [Splits, Slices, Views, nested], ids=["split", "slice", "view", "nested"])
def test_without_it_the_reason_says_what_would_help(make) -> None:
    groups = find_groups(build(make), EXAMPLE.double())
    assert any("`rewrite_hard_coded=True` would make them prunable" in entry.reason for entry in groups.locked)


def test_code_that_cannot_be_traced_is_not_changed() -> None:
    model = build(Branches)
    assert not rewrite_(model)
    assert "forward" not in model.__dict__


class Caches(_Body):
    """Keeps what it computes, as position biases are kept in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if "gate" not in self.cache:
            self.cache["gate"] = x[:, :8].mean()
        return self.join(x[:, :6] * self.cache["gate"], x[:, 6:])


def test_rewriting_does_not_change_the_caches_of_a_module() -> None:
    model = build(Caches)
    rewrite_(model)
    assert model.cache == {}


def test_undoing_a_rewrite_restores_the_module() -> None:
    model = build(Slices)
    before = dict(model.__dict__)
    rewrite_(model)
    unrewrite_(model)
    assert model.__dict__ == before


# --- in training ------------------------------------------------------------------------------------------------------


def callback() -> TaylorPruningCallback:
    return TaylorPruningCallback(every_n_steps=3, filters_per_prune=2, max_prunes=4, rewrite_hard_coded=True)


def lit(make=Slices) -> Classifier:
    torch.manual_seed(0)
    return Classifier(make())


def test_the_callback_prunes_it(tmp_path: Path) -> None:
    module = lit()
    trainer(callback(), max_epochs=-1, max_steps=14, default_root_dir=tmp_path).fit(module, loader())
    assert is_rewritten(module.network)
    assert module.network.stem.out_channels < 16


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    def run(ckpt_path: Path | None = None, **kwargs: Any) -> tuple[dict[str, Tensor], Any]:
        module, pruning = lit(), callback()
        fit = trainer(pruning, max_epochs=3, default_root_dir=tmp_path, **kwargs)
        fit.fit(module, loader(), ckpt_path=ckpt_path, weights_only=False)
        return module.state_dict(), pruning.history

    saving = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    whole, history = run(more_callbacks=[saving], enable_checkpointing=True)
    resumed, history_again = run(tmp_path / "epoch=0.ckpt")
    assert history == history_again
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_a_pruned_checkpoint_loads_into_a_fresh_network(tmp_path: Path) -> None:
    module = lit()
    fit: pl.Trainer = trainer(callback(), max_epochs=-1, max_steps=14, default_root_dir=tmp_path)
    fit.fit(module, loader())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    fresh = load_pruned(tmp_path / "last.ckpt", Slices())
    assert torch.equal(*(evaluate(m, (EXAMPLE,)) for m in (fresh, module.network)))
