"""Training steps that call their network in other ways than `self(x)`, or in other ways from batch to batch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune import TaylorPruningCallback
from tests.distributed import run_ranks
from tests.lightning_modules import loader, trainer


def block(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())


class Step(LightningModule):
    """Sixteen channels, then twelve, then ten classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc = block(1, 16), block(16, 12), nn.Linear(12, 10)

    def features(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


# --- calls that are none of the module ----------------------------------------------------------------------------


class ForwardByName(Step):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.forward(batch[0]), batch[1])


class LayerByLayer(Step):
    def training_step(self, batch: Any) -> Tensor:
        h = self.b(self.a(batch[0]))
        return F.cross_entropy(self.fc(h.mean((2, 3))), batch[1])


class InAnotherMethod(Step):
    def shared(self, batch: Any) -> Tensor:
        loss = F.cross_entropy(self.fc(self.features(batch[0])), batch[1])
        self.log("loss", loss)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": self.shared(batch)}


class EncodeDecode(Step):
    def __init__(self) -> None:
        super().__init__()
        self.d1, self.d2 = nn.Linear(12, 20), nn.Linear(20, 64)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        decoded = self.d2(F.relu(self.d1(self.features(batch[0]))))
        return F.mse_loss(decoded, batch[0].flatten(1)) + super().training_step(batch, batch_idx)


class TiedDecoder(Step):
    """Uses a weight outside of the call that it belongs to, with a bias of its width."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.bias = (
            nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 8)),
            nn.Parameter(torch.zeros(20)),
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = F.linear(self.code(self.features(batch[0])), self.code[2].weight.t(), self.bias)
        return hidden.square().mean() + super().training_step(batch, batch_idx)


class NumberOfTheLoss(Step):
    """Asks for values: what the first batch answered is answered again."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.forward(batch[0]), batch[1])
        return loss if loss.item() < 1e6 else loss * 0


WAYS = [ForwardByName, LayerByLayer, InAnotherMethod, EncodeDecode, TiedDecoder, NumberOfTheLoss]


def fit(kind: type[Step], epochs: int = 3, **options: Any) -> tuple[Step, TaylorPruningCallback]:
    settings = {"every_n_steps": 3, "filters_per_prune": 6, "max_prunes": 2, "validate_after_prune": False, **options}
    module, pruning = kind(), TaylorPruningCallback(**settings)
    trainer(pruning, max_epochs=epochs).fit(module, loader())
    return module, pruning


@pytest.mark.parametrize("kind", WAYS, ids=lambda kind: kind.__name__)
def test_the_network_is_pruned(kind: type[Step]) -> None:
    _, pruning = fit(kind)
    assert [row["removed"] for row in pruning.history] == [6, 6]


@pytest.mark.parametrize("kind", WAYS, ids=lambda kind: kind.__name__)
def test_the_classes_are_kept(kind: type[Step]) -> None:
    module, _ = fit(kind, filters_per_prune=12, max_prunes=1)
    assert module.fc.out_features == 10


class InPrecision(Step):
    """Runs only in the precision that the Trainer sets: what is written into a tensor must have its type."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.fc(self.features(batch[0]))
        table = torch.zeros(10, 10, dtype=torch.bfloat16).index_add(0, batch[1], logits)
        return F.cross_entropy(logits, batch[1]) + table.square().mean()


def test_the_step_is_analysed_in_the_precision_of_the_training() -> None:
    module, pruning = InPrecision(), TaylorPruningCallback(every_n_steps=3, filters_per_prune=6, max_prunes=1)
    trainer(pruning, precision="bf16-mixed").fit(module, loader())
    assert [(call.method, call.autocast) for call in pruning.groups.calls] == [
        ("training_step", ("cpu", torch.bfloat16))
    ]


class Penalised(Step):
    """Adds the norm of all weights to its loss, outside of any call."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 1e-4 * sum(p.pow(2).sum() for p in self.parameters())


def test_a_penalty_on_weights_is_no_use_outside_of_a_call() -> None:
    _, pruning = fit(Penalised)
    assert [call.method for call in pruning.groups.calls] == [""]


# --- paths that the first batch does not show -----------------------------------------------------------------------


class Heads(Step):
    """Two heads in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({task: nn.Linear(12, 10) for task in "ab"})


class HeadByArgument(Heads):
    def forward(self, x: Tensor, task: str = "a") -> Tensor:
        return self.heads[task](self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0], task="ab"[batch_idx % 2]), batch[1])


class HeadByNumber(Heads):
    def forward(self, x: Tensor, task: int = 0) -> Tensor:
        return self.heads["ab"[task]](self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0], batch_idx % 2), batch[1])


class HeadByState(Heads):
    def forward(self, x: Tensor) -> Tensor:
        return self.heads["ab"[self.global_step % 2]](self.features(x))


class HeadInTheStep(Heads):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.heads["ab"[batch_idx % 2]](self.features(batch[0])), batch[1])


class HeadByChance(Heads):
    def forward(self, x: Tensor) -> Tensor:
        return self.heads[random.choice("ab")](self.features(x))


class HeadByChanceOfTorch(Heads):
    def forward(self, x: Tensor) -> Tensor:
        return self.heads["ab"[int(torch.randint(2, ()))]](self.features(x))


class LayerDrop(Step):
    """Leaves out a layer now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = block(16, 16)

    def features(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = self.extra(h) if not self.training or random.random() < 0.5 else h
        return self.b(h).mean((2, 3))


class LaterBranch(Step):
    """A branch with layers of its own joins in the second epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Sequential(block(16, 9), block(9, 12))

    def features(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return (self.b(h) + (self.extra(h) if self.current_epoch else 0)).mean((2, 3))


class LateAuxiliaryHead(Step):
    """A head joins after the first prunes."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(16, 10)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.current_epoch > 1:
            loss = loss + F.cross_entropy(self.auxiliary(self.a(batch[0]).mean((2, 3))), batch[1])
        return loss


class ValidationOnly(Step):
    """A tower that runs in validation only."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Linear(12, 3)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("probe", self.probe(self.features(batch[0])).mean())


PATHS = [
    HeadByArgument,
    HeadByNumber,
    HeadByState,
    HeadInTheStep,
    HeadByChance,
    HeadByChanceOfTorch,
    LayerDrop,
    LaterBranch,
    LateAuxiliaryHead,
    ValidationOnly,
]


def fit_path(kind: type[Step]) -> tuple[Step, TaylorPruningCallback]:
    torch.manual_seed(0)
    random.seed(0)
    pruning = TaylorPruningCallback(every_n_steps=5, filters_per_prune=6, max_prunes=3, start_step=4)
    module = kind()
    trainer(pruning, max_epochs=6).fit(module, loader(), loader() if kind is ValidationOnly else None)
    return module, pruning


@pytest.mark.filterwarnings("ignore::lightning_taylor_prune.errors.PruningWarning")
@pytest.mark.parametrize("kind", PATHS, ids=lambda kind: kind.__name__)
def test_training_goes_on_and_the_network_is_pruned(kind: type[Step]) -> None:
    _, pruning = fit_path(kind)
    assert sum(row["removed"] for row in pruning.history) > 0


@pytest.mark.filterwarnings("ignore::lightning_taylor_prune.errors.PruningWarning")
@pytest.mark.parametrize("kind", [HeadByArgument, HeadByNumber, HeadByState, HeadInTheStep], ids=lambda k: k.__name__)
def test_both_heads_follow_what_they_read(kind: type[Heads]) -> None:
    module, _ = fit_path(kind)
    assert {head.in_features for head in module.heads.values()} == {module.b[0].out_channels}


# --- resume, and several ranks ---------------------------------------------------------------------------------------


def resume(kind: type[Step], folder: Path, epochs: int, checkpoint: Path | None = None) -> tuple[Step, Any]:
    torch.manual_seed(0)
    random.seed(0)
    module, pruning = kind(), TaylorPruningCallback(every_n_steps=5, filters_per_prune=4, max_prunes=3, start_step=4)
    saving = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")
    run = trainer(pruning, more_callbacks=[saving], max_epochs=epochs, enable_checkpointing=True)
    run.fit(module, loader(), ckpt_path=checkpoint, weights_only=False)
    return module, pruning


@pytest.mark.filterwarnings("ignore::lightning_taylor_prune.errors.PruningWarning")
@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize(
    "kind",
    [ForwardByName, EncodeDecode, TiedDecoder, NumberOfTheLoss, HeadByArgument, HeadInTheStep, LaterBranch],
    ids=lambda kind: kind.__name__,
)
def test_resumed_equals_uninterrupted(kind: type[Step], epoch: int, tmp_path: Path) -> None:
    whole, pruning = resume(kind, tmp_path / "whole", 3)
    resumed, again = resume(kind, tmp_path / "resumed", 3, tmp_path / "whole" / f"epoch={epoch}.ckpt")
    assert pruning.history == again.history
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())


class HeadByRank(Heads):
    """The second rank uses its head from the second batch on."""

    def forward(self, x: Tensor, task: str = "a") -> Tensor:
        return self.heads[task](self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0], task="ab"[int(self.global_rank == 1 and batch_idx > 0)]), batch[1])


def train_on_a_rank() -> tuple[list[str], dict[str, Any]]:
    torch.manual_seed(0)
    module, pruning = HeadByRank(), TaylorPruningCallback(every_n_steps=3, filters_per_prune=4, max_prunes=2)
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
    trainer(pruning, strategy=strategy, devices=2, max_epochs=4).fit(module, loader())
    assert pruning.groups is not None
    return [group.name for group in pruning.groups], {name: tuple(p.shape) for name, p in module.named_parameters()}


def test_ranks_that_go_other_ways_prune_the_same(tmp_path: Path) -> None:
    first, second = run_ranks(train_on_a_rank, tmp_path)
    assert first == second
    assert first[1]["heads.b.weight"][1] == first[1]["b.0.weight"][0]
