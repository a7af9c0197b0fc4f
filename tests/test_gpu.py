"""The suite that needs a GPU: ``pytest -m gpu``. It skips, with the reason, where there is none."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lightning_taylor_prune import TaylorPruningCallback, find_groups, prune_
from tests import lightning_modules
from tests.callbacks.test_ddp import same
from tests.distributed import run_ranks
from tests.lightning_modules import Classifier, loader, small_network, trainer
from tests.oracles import zero_

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
]


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_modules, "ACCELERATOR", "gpu")


class ScoreProbe(TaylorPruningCallback):
    """Keeps the scores of the steps so far."""

    def on_train_end(self, *args: Any) -> None:
        self.scores = self.pruner.scores
        self.skipped = self.pruner.criterion.skipped
        super().on_train_end(*args)


def scores(**kwargs: Any) -> ScoreProbe:
    probe = ScoreProbe(every_n_steps=1000)
    trainer(probe, **kwargs).fit(Classifier(optimizer=lambda p: torch.optim.SGD(p, 0.0)), loader())
    return probe


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("bf16-mixed", 0.1), ("16-mixed", 0.05), ("bf16-true", 0.2), ("64-true", 1e-3)]
)
def test_precision_scores_as_float32(precision: Any, tolerance: float) -> None:
    plain, other = scores().scores, scores(precision=precision).scores
    assert (plain - other).abs().max() <= tolerance * plain.max()


def test_overflow_steps_are_skipped() -> None:
    class Overflowing(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch) * (1e30 if batch_idx == 2 else 1.0)

    probe = ScoreProbe(every_n_steps=1000)
    trainer(probe, precision="16-mixed").fit(Overflowing(), loader())
    assert probe.skipped >= 1 and probe.scores.isfinite().all()


@pytest.mark.parametrize("criterion", ["taylor", "taylor_gate", "taylor_weight", "taylor_activation"])
@pytest.mark.parametrize("optimizer_state", ["reset", "slice"])
def test_network_comes_out_smaller(criterion: str, optimizer_state: Any) -> None:
    module = Classifier()
    pruning = TaylorPruningCallback(
        every_n_steps=2, filters_per_prune=2, criterion=criterion, optimizer_state=optimizer_state
    )
    trainer(pruning).fit(module, loader())
    assert sum(p.numel() for p in module.parameters()) == pruning.history[-1]["params"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_pruned_output_is_masked_output(memory_format: torch.memory_format) -> None:
    model = small_network().double().cuda().to(memory_format=memory_format).eval()
    example = torch.randn(4, 1, 8, 8, dtype=torch.float64, device="cuda")
    groups = find_groups(model, example)
    plan = groups.plan({group.name: range(0, group.num_channels, 3) for group in groups})
    masked = copy.deepcopy(model)
    zero_(masked, plan)
    prune_(model, plan)
    torch.testing.assert_close(model(example), masked(example))


def train_on_one_gpu(synchronised: bool) -> dict[str, Any]:
    """Train in this rank; the ranks pass for two nodes that share the first GPU, and talk over gloo."""
    lightning_modules.ACCELERATOR = "gpu"
    module = Classifier()
    if synchronised:
        module.network = nn.SyncBatchNorm.convert_sync_batchnorm(module.network)
    strategy = DDPStrategy(process_group_backend="gloo")
    pruning = TaylorPruningCallback(every_n_steps=2, filters_per_prune=2, max_prunes=5, optimizer_state="slice")
    run = trainer(pruning, strategy=strategy, num_nodes=2, max_epochs=4)
    run.fit(module, loader())
    state = [v for p in module.parameters() for v in run.optimizers[0].state[p].values()]
    parameters = [p.detach().cpu() for p in module.parameters()]
    return {"history": pruning.history, "parameters": parameters, "state": [v.cpu() for v in state]}


@pytest.mark.parametrize("synchronised", [False, True], ids=["BatchNorm", "SyncBatchNorm"])
def test_two_ranks_on_one_gpu_stay_bit_identical(synchronised: bool, tmp_path: Path) -> None:
    results = run_ranks(train_on_one_gpu, tmp_path, 2, nodes=2, synchronised=synchronised)
    assert all(isinstance(result, dict) for result in results), results
    assert len(results[0]["history"]) == 5 and same(results)
