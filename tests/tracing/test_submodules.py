"""Networks that depend on the values of tensors: their submodules are pruned, except what other code uses too."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_taylor_prune import PruningWarning, TaylorPruningCallback, TraceError, find_groups, measure_cost, prune_
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.submodules import submodules_of_call
from tests.distributed import run_ranks
from tests.lightning_modules import Classifier, loader, trainer
from tests.oracles import (
    differences,
    mask_readers_,
    random_units,
    randomize_norms_,
    relative_error,
    state_of,
    training_step,
)


def bytes_of(tensor: Tensor) -> Any:
    """Read memory past torch; of booleans, that is one byte each."""
    values = np.array(tensor.contiguous().untyped_storage().tolist())
    return values.reshape(tensor.shape) if tensor.dtype is torch.bool else values


class Detector(nn.Module):
    """Runs a second head at the places that a first head chooses, outside of torch: that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1))
        self.glance = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))
        self.heads = nn.ModuleDict({"look": nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10))})

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        chosen = self.glance(features).squeeze(1)
        places = torch.from_numpy(np.argwhere(bytes_of(chosen > chosen.mean())))
        found = self.heads["look"](features[places[:, 0], :, places[:, 1], places[:, 2]])
        return torch.stack([found[places[:, 0] == i].sum(0) for i in range(len(x))]) + chosen.mean((1, 2))[:, None]


class Borrowing(Detector):
    """Uses a weight of its backbone outside of the backbone, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.conv2d(x, self.backbone[0].weight, padding=1).square().mean()


class Asking(Detector):
    """Reads only the device and dtype of a weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.backbone[0].weight
        return super().forward(x.to(weight.device, weight.dtype))


IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def build(kind: type[Detector] = Detector) -> Detector:
    torch.manual_seed(0)
    return randomize_norms_(kind()).double()


def analysed(kind: type[Detector] = Detector) -> tuple[Detector, Any]:
    model = build(kind)
    with pytest.warns(PruningWarning, match="`backbone`, `glance`, `heads.look`.*test_submodules.py"):
        return model, find_groups(model, IMAGES)


def test_hidden_channels_of_all_submodules_can_be_removed() -> None:
    _, groups = analysed()
    assert {g.name: g.num_channels for g in groups} == {"backbone.0": 8, "glance.0": 4, "heads.look.0": 12}


def test_outputs_of_a_submodule_are_locked_with_the_reason() -> None:
    _, groups = analysed()
    reasons = {entry.name: entry.reason for entry in groups.locked}
    assert reasons["backbone.3"] == "is an output of `backbone`, and the code that uses it cannot be traced"


def test_pruned_equals_masked() -> None:
    model, groups = analysed()
    plan = groups.plan(random_units(groups, 0.5))
    masked = mask_readers_(copy.deepcopy(model), plan)
    prune_(model, plan)
    assert relative_error(model.eval()(IMAGES), masked.eval()(IMAGES)) < 1e-10


def test_a_pruned_network_trains() -> None:
    model, groups = analysed()
    prune_(model, groups.plan(random_units(groups, 0.5)))
    before = model.eval()(IMAGES)
    training_step(model.train(), (IMAGES,))
    assert relative_error(model.eval()(IMAGES), before) > 0


def test_a_parameter_that_is_used_elsewhere_too_is_locked() -> None:
    _, groups = analysed(Borrowing)
    assert "backbone.0" not in groups
    assert any("also used by code that cannot be traced" in entry.reason for entry in groups.locked)


def test_asking_a_parameter_for_its_device_locks_nothing() -> None:
    _, groups = analysed(Asking)
    assert groups["backbone.0"].num_channels == 8


def test_the_network_is_unchanged() -> None:
    model = build()
    before, random_state = state_of(model), torch.get_rng_state()
    submodules_of_call(model, Call("", (IMAGES,)))
    assert differences(before, state_of(model)) == []
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_network_that_does_not_run_either_is_refused_with_the_error_of_tracing() -> None:
    with pytest.raises(TraceError, match="Cannot trace the network"):
        find_groups(build(), IMAGES[:, :, 0])


class Scattered(nn.Sequential):
    """Its submodules are single layers, and code that cannot be traced uses all their outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, : 1 + int(bytes_of(x).sum()) % 2]


def test_a_network_whose_submodules_are_all_locked_is_refused_with_the_error_of_tracing() -> None:
    network = Scattered(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).double()
    with pytest.raises(TraceError, match="Cannot trace the network.*test_submodules.py"):
        find_groups(network, IMAGES)


def test_cost_counts_a_real_run() -> None:
    model = build()
    before = measure_cost(model, IMAGES)
    hidden = 4 * 64 * (9 * 8 + 8 * 6 + 6 * 4 + 4)
    assert before.macs > hidden
    assert (before.macs - hidden) % (6 * 12 + 12 * 10) == 0  # one look for each place


class Numerical(Detector):
    """Computes something outside of torch, which fake tensors do not allow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float(bytes_of(x).std())


def test_cost_counts_a_real_run_of_code_outside_of_torch() -> None:
    assert measure_cost(build(Numerical), IMAGES) == measure_cost(build(), IMAGES)


def test_cost_of_a_call_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        measure_cost(build(), IMAGES.expand(-1, 3, -1, -1))


# --- in training ---------------------------------------------------------------------------------------------------


class Choosy(Detector):
    """Has a head that runs for bright images only: on one rank, not on the other."""

    def __init__(self) -> None:
        super().__init__()
        self.heads["bright"] = nn.Sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 10))

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found + self.heads["bright"](found) if x.mean() > 5 else found


def train_on_a_rank() -> tuple[list[str], int]:
    """Train in this rank of a job; returns the groups and the number of parameters that are kept."""
    rank = int(os.environ["RANK"])
    data = TensorDataset(torch.randn(32, 1, 8, 8) + 10 * (1 - rank), torch.randint(4, (32,)))
    torch.manual_seed(0)
    module, pruning = Classifier(Choosy()), callback()
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
    run = trainer(pruning, strategy=strategy, devices=2, max_epochs=4, use_distributed_sampler=False)
    run.fit(module, DataLoader(data, batch_size=8))
    assert pruning.groups is not None
    return [group.name for group in pruning.groups], sum(p.numel() for p in module.parameters())


def test_ranks_that_call_different_submodules_prune_the_same(tmp_path: Path) -> None:
    first, second = run_ranks(train_on_a_rank, tmp_path)
    assert first == second
    assert first[0] == ["network.backbone.0", "network.glance.0", "network.heads.look.0", "network.heads.bright.0"]


class Detecting(Classifier):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(Detector())


def callback() -> TaylorPruningCallback:
    return TaylorPruningCallback(every_n_steps=3, filters_per_prune=2, max_prunes=4)


def fit(folder: Path, ckpt_path: Path | None = None, **kwargs: Any) -> tuple[Detecting, TaylorPruningCallback]:
    module, pruning = Detecting(), callback()
    run = trainer(pruning, max_epochs=3, default_root_dir=folder, **kwargs)
    run.fit(module, loader(), ckpt_path=ckpt_path, weights_only=False)
    return module, pruning


@pytest.mark.filterwarnings("ignore::lightning_taylor_prune.errors.PruningWarning")
def test_the_callback_prunes_the_submodules(tmp_path: Path) -> None:
    _, pruning = fit(tmp_path)
    assert pruning.groups is not None
    assert pruning.groups.num_units == 24 - 4 * 2


@pytest.mark.filterwarnings("ignore::lightning_taylor_prune.errors.PruningWarning")
def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    whole, pruning = fit(tmp_path, more_callbacks=[saving], enable_checkpointing=True)
    resumed, again = fit(tmp_path, tmp_path / "epoch=0.ckpt")
    assert pruning.history == again.history
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())
