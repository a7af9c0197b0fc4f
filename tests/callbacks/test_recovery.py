"""Self-distillation: the same training as with the distance written into the loss, whatever the Trainer does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lightning_taylor_prune import DistillationLoss, Recovery, TaylorPruningCallback, Teacher
from lightning_taylor_prune.recovery import attention_distance
from tests.distributed import run_ranks
from tests.lightning_modules import ChildClassifier, Classifier, TwoStage, loader, small_network, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")


class Explicit(Classifier):
    """Has the distance to its teacher in its loss."""

    def __init__(self, teacher: nn.Module, weight: float, distance: DistillationLoss) -> None:
        super().__init__()
        self.taught = [Teacher.copy_of(teacher)]
        self.weight, self.distance = weight, distance

    def loss(self, batch: Any) -> Tensor:
        output = self(batch[0])
        distance = self.distance(output, self.taught[0](batch[0]))
        return (1 - self.weight) * F.cross_entropy(output, batch[1]) + self.weight * distance


class Manual(Classifier):
    """Takes two passes, each with its own step, from every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for half in zip(*(value.chunk(2) for value in batch), strict=True):
            self.optimizers().zero_grad()
            self.manual_backward(self.loss(half))
            self.optimizers().step()


class ManualExplicit(Explicit):
    """The same with the distance in its loss."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.automatic_optimization = False

    training_step = Manual.training_step


KINDS = {"kl": DistillationLoss("kl", 2.0), "mse": DistillationLoss("mse")}


def weights_after(module: pl.LightningModule, callback: Any = None, **kwargs: Any) -> list[Tensor]:
    trainer(callback, max_epochs=2, **kwargs).fit(module, loader())
    return [p.detach() for p in module.parameters()]


@pytest.mark.parametrize("distance", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}],
    ids=["plain", "accumulation", "bf16", "clipping"],
)
def test_it_trains_as_with_the_distance_in_the_loss(distance: DistillationLoss, kwargs: dict[str, Any]) -> None:
    teacher = small_network(seed=5)
    explicit = weights_after(Explicit(teacher, 0.7, distance), **kwargs)
    callback = Recovery(teacher, weight=0.7, kind=distance.kind, temperature=distance.temperature)
    loose = {"rtol": 2e-2, "atol": 2e-3} if "precision" in kwargs else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(weights_after(Classifier(), callback, **kwargs), explicit, **loose)


def test_several_passes_of_manual_optimization_are_taught_each() -> None:
    teacher, distance = small_network(seed=5), KINDS["mse"]
    explicit = weights_after(ManualExplicit(teacher, 0.5, distance))
    taught = weights_after(Manual(), Recovery(teacher, weight=0.5, kind="mse"))
    torch.testing.assert_close(taught, explicit, rtol=1e-4, atol=1e-6)


def test_it_changes_the_training() -> None:
    assert not torch.equal(
        weights_after(Classifier(), Recovery(small_network(seed=5)))[0], weights_after(Classifier())[0]
    )


def test_features_are_taught_by_their_attention() -> None:
    teacher = small_network(seed=5)

    class WithFeatures(Explicit):
        def loss(self, batch: Any) -> Tensor:
            features = self.network[:4](batch[0])
            wanted = self.taught[0].network[:4](batch[0])
            output = self.network[4:](features)
            distance = self.distance(output, self.taught[0](batch[0])) + 3.0 * attention_distance(features, wanted)
            return 0.5 * F.cross_entropy(output, batch[1]) + 0.5 * distance

    explicit = weights_after(WithFeatures(teacher, 0.5, KINDS["kl"]))
    callback = Recovery(teacher, weight=0.5, temperature=2.0, features=["network.3"], feature_weight=3.0)
    torch.testing.assert_close(weights_after(Classifier(), callback), explicit, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("module", [Classifier, ChildClassifier, TwoStage], ids=lambda m: m.__name__)
def test_pruning_goes_on_as_before_and_the_teacher_keeps_its_filters(module: Callable[[], pl.LightningModule]) -> None:
    pruning, recovery, network = TaylorPruningCallback(3, 2, 2), Recovery(), module()
    before = copy.deepcopy(network)
    trainer(pruning, more_callbacks=[recovery], max_epochs=2).fit(network, loader())
    assert len(pruning.history) == 2 and all(
        torch.equal(a, b) for a, b in zip(recovery.teacher.network.parameters(), before.parameters(), strict=True)
    )


def test_compared_features_can_be_pruned() -> None:
    pruning, recovery, network = (
        TaylorPruningCallback(3, 6, 2),
        Recovery(features=["network.0", "network.3"]),
        Classifier(),
    )
    trainer(pruning, more_callbacks=[recovery], max_epochs=2).fit(network, loader())
    assert (network.network[0].out_channels, network.network[3].out_channels) != (8, 16)


def run(resume: Path | None, folder: Path, stop_after: int = 3) -> tuple[list[Tensor], Recovery]:
    """Train with pruning and recovery for some epochs, and save."""
    module, recovery = Classifier(small_network(width=12)), Recovery(weight=0.8)
    fitting = trainer(
        TaylorPruningCallback(3, 3, 4), more_callbacks=[recovery], max_epochs=stop_after, default_root_dir=folder
    )
    fitting.fit(module, loader(), ckpt_path=resume)
    fitting.save_checkpoint(folder / f"{stop_after}.ckpt")
    return [p.detach() for p in module.parameters()], recovery


def test_a_resumed_run_ends_bit_for_bit_as_the_whole_one(tmp_path: Path) -> None:
    whole, _ = run(None, tmp_path)
    run(None, tmp_path, stop_after=1)
    resumed, _ = run(tmp_path / "1.ckpt", tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_a_pickle_keeps_what_the_teacher_knows(tmp_path: Path) -> None:
    _, recovery = run(None, tmp_path, stop_after=1)
    twin, module = pickle.loads(pickle.dumps(recovery)), Classifier(small_network(width=12, seed=3))
    trainer(twin).fit(module, loader())
    assert all(
        torch.equal(a, b)
        for a, b in zip(twin.teacher.network.parameters(), recovery.teacher.network.parameters(), strict=True)
    )


def test_a_checkpoint_teaches_the_pruned_network_that_came_of_it(tmp_path: Path) -> None:
    original = Classifier()
    fitting = trainer()
    fitting.fit(original, loader())
    fitting.save_checkpoint(tmp_path / "original.ckpt")
    recovery = Recovery(tmp_path / "original.ckpt")
    trainer(recovery).fit(Classifier(small_network(seed=4)), loader())
    torch.testing.assert_close(recovery.teacher.network.state_dict(), original.state_dict())


def train_in_rank() -> dict[str, Any]:
    """Two ranks see halves of the batches of one."""
    torch.manual_seed(0)
    strategy = DDPStrategy(process_group_backend="gloo")
    module, pruning = Classifier(small_network(width=12)), TaylorPruningCallback(4, 3, 2)
    trainer(pruning, more_callbacks=[Recovery()], strategy=strategy, devices=2, max_epochs=3).fit(module, loader())
    return {"parameters": [p.detach() for p in module.parameters()], "prunes": len(pruning.history)}


def test_all_ranks_end_with_the_same_network(tmp_path: Path) -> None:
    first, second = run_ranks(train_in_rank, tmp_path)
    assert first["prunes"] == 2 and all(map(torch.equal, first["parameters"], second["parameters"]))


class Answering(Classifier):
    """Returns a dictionary."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def forward(self, x: Tensor) -> Any:
        return {self.key: self.network(x), "again": x}

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0])[self.key], batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))


@pytest.mark.parametrize(
    "arguments",
    [{"key": "logits"}, {"key": "classes", "output": lambda found: found["classes"]}],
    ids=["logits", "by a function"],
)
def test_one_tensor_of_several_is_compared(arguments: dict[str, Any]) -> None:
    teacher = small_network(seed=5)
    wanted = weights_after(Classifier(), Recovery(teacher, target="network"))
    module = Answering(arguments["key"])
    taught_module = Answering(arguments["key"])
    taught_module.network = small_network(seed=5)
    taught = weights_after(module, Recovery(taught_module, output=arguments.get("output")))
    torch.testing.assert_close(taught, wanted, rtol=1e-4, atol=1e-6)


class Flattening(ChildClassifier):
    """Works on between two networks."""

    def __init__(self) -> None:
        super().__init__(network=small_network()[:7])
        self.head = nn.Linear(16, 4)

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.head(self.network(batch[0]).flatten(1)), batch[1])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: Answering("classes"), "`forward` to return a tensor"),
        (Flattening, "to call one network"),
    ],
    ids=["dictionary", "work between networks"],
)
def test_what_the_teacher_cannot_answer_is_refused_in_the_first_batch(module: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        trainer(Recovery()).fit(module(), loader())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": 1.5}, "`weight`"),
        ({"temperature": -1}, "`temperature`"),
        ({"kind": "l1"}, "`kind`"),
        ({"features": "network.0"}, "`features`"),
        ({"teacher": 3}, "`teacher`"),
        ({"teacher": "no/such.ckpt"}, "there is none at no/such.ckpt"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        Recovery(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"target": "backbone"}, "`target`"), ({"features": ["network.77"]}, "no `network.77`")],
    ids=["target", "features"],
)
def test_names_are_checked_before_training(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        trainer(Recovery(**arguments)).fit(Classifier(), loader())


def test_no_hook_is_left_behind() -> None:
    module = Classifier()
    trainer(Recovery(features=["network.0"])).fit(module, loader())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
