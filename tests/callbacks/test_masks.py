"""Lightning's `ModelPruning`, which puts masks on the same network's layers, beside the callback."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning
from torch.nn.utils import prune

from lightning_taylor_prune import PruningWarning, TaylorPruningCallback
from lightning_taylor_prune.criteria import CRITERIA
from tests.lightning_modules import Classifier, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")

EVERY = {"masks after the first prune": 3, "masks before the first prune": 10}  # an epoch has 8 steps


def fit(pruning: TaylorPruningCallback, masks_first: bool = False, epochs: int = 3, **options: Any) -> Any:
    """Train with both callbacks; return the module and the Trainer."""
    masks = ModelPruning("l1_unstructured", amount=0.2, **options)
    first, second = (masks, pruning) if masks_first else (pruning, masks)
    module, run = Classifier(), trainer(first, more_callbacks=[second], max_epochs=epochs)
    run.fit(module, loader())
    return module, run


@pytest.mark.parametrize("masks_first", [True, False])
@pytest.mark.parametrize("ticket", [True, False], ids=["lottery ticket", "plain"])
@pytest.mark.parametrize("every", EVERY.values(), ids=EVERY)
def test_a_network_is_pruned_beside_masks(every: int, ticket: bool, masks_first: bool) -> None:
    pruning = TaylorPruningCallback(every_n_steps=every, filters_per_prune=2, max_prunes=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PruningWarning)
        module, _ = fit(pruning, masks_first, use_lottery_ticket_hypothesis=ticket)
    assert len(pruning.history) == 24 // every
    assert sum(p.numel() for p in module.parameters()) == pruning.history[-1]["params"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_scores_masked_layers(criterion: str) -> None:
    pruning = TaylorPruningCallback(every_n_steps=3, filters_per_prune=2, max_prunes=None, criterion=criterion)
    fit(pruning, epochs=2)
    assert [row["step"] for row in pruning.history] == [3, 6, 9, 12, 15]


def test_masks_are_cut_along() -> None:
    pruning = TaylorPruningCallback(every_n_steps=3, filters_per_prune=2, max_prunes=None)
    module, _ = fit(pruning, make_pruning_permanent=False)
    layer = module.network[3]
    assert layer.weight_mask.shape == layer.weight_orig.shape == (layer.out_channels, layer.in_channels, 3, 3)


def test_masks_made_before_training_are_cut_along() -> None:
    module, pruning = Classifier(), TaylorPruningCallback(every_n_steps=3, filters_per_prune=2, max_prunes=None)
    prune.l1_unstructured(module.network[3], "weight", 0.5)
    trainer(pruning, max_epochs=1).fit(module, loader())
    assert len(pruning.history) == 2 and module.network[3].weight_mask.shape[0] == module.network[3].out_channels


def test_a_training_is_resumed_with_both_callbacks(tmp_path: Path) -> None:
    pruning = TaylorPruningCallback(every_n_steps=3, filters_per_prune=2, max_prunes=None)
    _, run = fit(pruning, epochs=2)
    run.save_checkpoint(tmp_path / "last.ckpt")
    resumed = TaylorPruningCallback(every_n_steps=3, filters_per_prune=2, max_prunes=None)
    again = trainer(resumed, more_callbacks=[ModelPruning("l1_unstructured", amount=0.2)], max_epochs=4)
    again.fit(Classifier(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert [row["step"] for row in resumed.history] == list(range(3, 33, 3))[: len(resumed.history)]
    assert len(resumed.history) > len(pruning.history)


def test_layers_that_a_ticket_resets_have_their_first_values() -> None:
    pruning = TaylorPruningCallback(every_n_steps=3, filters_per_prune=2, max_prunes=2)
    module, run = fit(pruning, epochs=1, make_pruning_permanent=False)
    masks = next(c for c in run.callbacks if isinstance(c, ModelPruning))
    held = masks._original_layers[id(module.network[3])]["data"]
    assert torch.equal(held.weight, module.network[3].weight_orig) and pruning.history
