"""What callbacks and plain attributes hold for the network's parameters is cut with them; training goes on."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_taylor_prune import TaylorPruningCallback
from tests.lightning_modules import Classifier, loader, small_network, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Keeps(pl.Callback):
    """Keeps something for the network's parameters, and updates it after every step."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.begin(pl_module)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.update(pl_module)

    def begin(self, module: Any) -> None:
        raise NotImplementedError

    def update(self, module: Any) -> None:
        for own, new in zip(self.kept(module), module.network.parameters(), strict=True):
            own.lerp_(new, 0.1)

    def kept(self, module: Any) -> Iterable[Tensor]:
        raise NotImplementedError


class InnerCopy(Keeps):
    def begin(self, module: Any) -> None:
        self.average = copy.deepcopy(module.network)

    def kept(self, module: Any) -> Iterable[Tensor]:
        return self.average.parameters()


class WholeCopy(InnerCopy):
    def begin(self, module: Any) -> None:
        self.average = copy.deepcopy(module)


class InAList(Keeps):
    def begin(self, module: Any) -> None:
        self.several = [{"network": copy.deepcopy(module.network)}]

    def kept(self, module: Any) -> Iterable[Tensor]:
        return self.several[0]["network"].parameters()


class ModelEma(nn.Module):
    """As timm writes it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model).eval()


class Wrapped(Keeps):
    """Begins to follow after the first prune."""

    def begin(self, module: Any) -> None:
        self.kept_model = ModelEma(module.network)

    def update(self, module: Any) -> None:
        if module.global_step > 4:
            super().update(module)

    def kept(self, module: Any) -> Iterable[Tensor]:
        return self.kept_model.module.parameters()


class OwnPlace(Keeps):
    """The module itself holds the copy, as a plain attribute."""

    def begin(self, module: Any) -> None:
        object.__setattr__(module, "slow", copy.deepcopy(module.network))

    def kept(self, module: Any) -> Iterable[Tensor]:
        return module.slow.parameters()


class MovingAverage:
    """As torch_ema writes it: a list, and weak references to the parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        several = list(parameters)
        self.shadow_params = [parameter.detach().clone() for parameter in several]
        self.references = [weakref.ref(parameter) for parameter in several]


class ShadowList(Keeps):
    def begin(self, module: Any) -> None:
        self.averages = MovingAverage(module.network.parameters())

    def update(self, module: Any) -> None:
        for own, new in zip(self.averages.shadow_params, self.averages.references, strict=True):
            own.lerp_(new(), 0.1)  # type: ignore[arg-type]

    def kept(self, module: Any) -> Iterable[Tensor]:
        return self.averages.shadow_params


class ShadowDict(Keeps):
    def begin(self, module: Any) -> None:
        self.shadow = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    def update(self, module: Any) -> None:
        for name, parameter in module.named_parameters():
            self.shadow[name] = 0.9 * self.shadow[name] + 0.1 * parameter

    def kept(self, module: Any) -> Iterable[Tensor]:
        return self.shadow.values()


class OwnShadow(Keeps):
    """The module holds a dictionary with names relative to the network."""

    def begin(self, module: Any) -> None:
        module.shadow = {name: value.clone() for name, value in module.network.state_dict().items()}

    def kept(self, module: Any) -> Iterable[Tensor]:
        return [module.shadow[name] for name, _ in module.network.named_parameters()]


class Importances(Keeps):
    """Never changes: what training must not forget (elastic weight consolidation)."""

    def begin(self, module: Any) -> None:
        self.importance = {name: torch.rand_like(p) for name, p in module.named_parameters()}

    def update(self, module: Any) -> None:
        self.loss = sum(self.importance[name].mul(p).sum() for name, p in module.named_parameters())

    def kept(self, module: Any) -> Iterable[Tensor]:
        return self.importance.values()


class BuffersWithoutDots(Keeps):
    def begin(self, module: Any) -> None:
        self.holder = nn.Module()
        for name, parameter in module.network.named_parameters():
            self.holder.register_buffer(name.replace(".", ""), parameter.detach().clone())

    def kept(self, module: Any) -> Iterable[Tensor]:
        return self.holder.buffers()


class ByParameter(Keeps):
    def begin(self, module: Any) -> None:
        self.velocity = {parameter: torch.zeros_like(parameter) for parameter in module.parameters()}

    def update(self, module: Any) -> None:
        for parameter in module.parameters():
            self.velocity[parameter].add_(parameter)

    def kept(self, module: Any) -> Iterable[Tensor]:
        return self.velocity.values()


class Pairs(Keeps):
    def begin(self, module: Any) -> None:
        self.pairs = [(parameter, torch.zeros_like(parameter)) for parameter in module.parameters()]

    def update(self, module: Any) -> None:
        for parameter, own in self.pairs:
            own.add_(parameter)

    def kept(self, module: Any) -> Iterable[Tensor]:
        return [own for _, own in self.pairs]


FOLLOWERS = [
    *(InnerCopy, WholeCopy, InAList, Wrapped, OwnPlace, ShadowList, ShadowDict, OwnShadow),
    *(Importances, BuffersWithoutDots, ByParameter, Pairs),
]


class Lazy(Classifier):
    """Some of its parameters have no shape before the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.LazyLinear(3)


def shapes(tensors: Iterable[Tensor]) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors]


def fit(module: pl.LightningModule, *callbacks: pl.Callback, **arguments: Any) -> TaylorPruningCallback:
    pruning = TaylorPruningCallback(**{"every_n_steps": 3, "max_prunes": 2, **arguments})
    trainer(pruning, more_callbacks=list(callbacks)).fit(module, loader())
    assert len(pruning.history) == 2
    return pruning


@pytest.mark.parametrize("cls", FOLLOWERS)
def test_what_is_kept_for_parameters_is_cut_with_them(cls: type[Keeps]) -> None:
    module, keeping = Classifier(), cls()
    fit(module, keeping)
    assert shapes(keeping.kept(module)) == shapes(module.network.parameters())


class Teacher(InnerCopy):
    def begin(self, module: Any) -> None:
        self.average = small_network(seed=1)

    def update(self, module: Any) -> None:
        pass


class OwnPast(Teacher):
    def begin(self, module: Any) -> None:
        self.teacher = copy.deepcopy(module.network)

    def kept(self, module: Any) -> Iterable[Tensor]:
        return self.teacher.parameters()


class Probe(Teacher):
    """A classifier with an optimizer of its own, of the same shapes as the network's last layer."""

    def begin(self, module: Any) -> None:
        self.average = nn.Linear(16, 4)

    @torch.enable_grad()
    def update(self, module: Any) -> None:
        self.average(torch.randn(8, 16)).square().mean().backward()
        torch.optim.SGD(self.average.parameters(), 0.1).step()


@pytest.mark.parametrize("cls", [Teacher, OwnPast, Probe])
def test_what_does_not_follow_is_not_cut(cls: type[Keeps]) -> None:
    module, keeping = Classifier(), cls()
    before = shapes(Classifier().network.parameters())
    fit(module, keeping)
    assert shapes(keeping.kept(module)) in (before, before[-2:])


def test_what_has_no_shape_yet_is_no_hindrance() -> None:
    trainer(TaylorPruningCallback(every_n_steps=3), more_callbacks=[InnerCopy()]).fit(Lazy(), loader())


class OwnOptimizer(Classifier):
    """Steps an optimizer that it keeps for itself, in a plain object or not."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.inner = torch.optim.Adam(self.network.parameters(), 1e-3)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.inner.zero_grad()
        self.manual_backward(self.loss(batch))
        self.inner.step()
        self.optimizers().step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)


@pytest.mark.parametrize("mode", ["reset", "slice"])
def test_an_optimizer_that_the_module_keeps_is_carried_along(mode: str) -> None:
    module = OwnOptimizer()
    fit(module, optimizer_state=mode)
    moments = [module.inner.state[parameter]["exp_avg"] for parameter in module.network.parameters()]
    assert shapes(moments) == shapes(module.network.parameters())


NAMED: dict[str, Callable[[nn.Module], Any]] = {
    "module": lambda kept: kept,
    "function": lambda kept: lambda: kept,
    "function of the module": lambda kept: lambda module: kept,
    "dictionary": lambda kept: kept.state_dict(),
    "list": lambda kept: [parameter.data for parameter in kept.parameters()],
}


@pytest.mark.parametrize("how", NAMED)
def test_the_user_names_what_cannot_be_found(how: str) -> None:
    module, kept = Classifier(), small_network(seed=1)
    named = NAMED[how](kept)
    fit(module, copies=[named])
    value = named if not callable(named) or isinstance(named, nn.Module) else kept
    tensors = (
        value.parameters() if isinstance(value, nn.Module) else [*value.values()] if how == "dictionary" else value
    )
    assert set(shapes(tensors)) >= set(shapes(module.network.parameters()))


def test_what_is_named_but_no_copy_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="Expected each of `copies` to be a copy"):
        fit(Classifier(), copies=[nn.Linear(3, 3)])


def test_copies_must_be_a_list_of_things_to_cut() -> None:
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="Expected argument `copies`"):
        TaylorPruningCallback(copies="network")  # type: ignore[arg-type]


def test_a_copied_callback_names_the_same_objects() -> None:
    module, kept = Classifier(), small_network(seed=1)
    twin = copy.deepcopy(TaylorPruningCallback(every_n_steps=3, max_prunes=2, copies=[kept]))
    trainer(twin).fit(module, loader())
    assert shapes(kept.parameters()) == shapes(module.network.parameters())


def test_a_callback_with_functions_can_be_pickled() -> None:
    callback = TaylorPruningCallback(copies=[lambda: None, small_network()])
    assert isinstance(pickle.loads(pickle.dumps(callback)), TaylorPruningCallback)


class SavedCopy(InnerCopy):
    """Goes through checkpoints by its own state."""

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self.average = copy.deepcopy(pl_module.network)

    def begin(self, module: Any) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average.load_state_dict(state_dict["average"])


@pytest.mark.parametrize("listed_first", [True, False], ids=["copy listed first", "pruning listed first"])
def test_a_copy_of_the_inner_network_resumes(listed_first: bool, tmp_path: Path) -> None:
    def run(resume: str | None, epochs: int) -> SavedCopy:
        keeping, pruning = SavedCopy(), TaylorPruningCallback(every_n_steps=3, filters_per_prune=2, max_prunes=None)
        callbacks = [keeping, pruning] if listed_first else [pruning, keeping]
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fitting = trainer(more_callbacks=[*callbacks, saving], max_epochs=epochs, enable_checkpointing=True)
        fitting.fit(Classifier(), loader(), ckpt_path=resume)
        return keeping

    whole = run(None, 2)
    resumed = run(str(tmp_path / "epoch=0.ckpt"), 2)
    pairs = zip(whole.average.parameters(), resumed.average.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
