"""Runs that go on with other arguments, with another network, or beside another callback that prunes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_taylor_prune import TaylorPruningCallback
from lightning_taylor_prune.errors import PruningWarning
from tests.lightning_modules import Classifier, TwoStage, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


def pruning(**arguments: Any) -> TaylorPruningCallback:
    return TaylorPruningCallback(**{"every_n_steps": 2, "filters_per_prune": 1, "max_prunes": None, **arguments})


def run(
    folder: Path, resume: str | None, *callbacks: TaylorPruningCallback, module: Any = None, epochs: int = 2
) -> pl.LightningModule:
    """Train with 8 steps an epoch."""
    module = module or Classifier()
    saving = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    fitting = trainer(more_callbacks=[*callbacks, saving], max_epochs=epochs, enable_checkpointing=True)
    fitting.fit(module, loader(), ckpt_path=None if resume is None else str(folder / resume))
    return module


def steps_after(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> list[int]:
    """Return the steps of all prunes if arguments change after 8 of 16 steps."""
    run(folder, None, pruning(**before), epochs=1)
    callback = pruning(**after)
    module = run(folder, "epoch=0.ckpt", callback)
    assert sum(p.numel() for p in module.parameters()) == callback.history[-1]["params"]
    return [row["step"] for row in callback.history]


EVERY_2 = [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("before", "after", "steps"),
    [
        ({"max_prunes": 2}, {"max_prunes": 4}, [2, 4, 10, 12]),
        ({"max_prunes": 2}, {"max_prunes": None}, [2, 4, 10, 12, 14, 16]),
        ({"max_prunes": 2}, {"max_prunes": 2}, [2, 4]),
        ({}, {"max_prunes": 3}, EVERY_2),
        ({"max_prunes": 2}, {"max_prunes": 1}, [2, 4]),
        ({"stop_at": {"filters": 27}}, {"stop_at": {"filters": 25}}, [2, 10, 12]),
        ({}, {"stop_at": {"filters": 24}}, EVERY_2),
        ({"min_channels": 16, "max_prunes": 5}, {"max_prunes": 5}, [10, 12, 14, 16]),
        ({}, {"every_n_steps": 3}, [*EVERY_2, 9, 12, 15]),
        ({}, {"every_n_steps": 5}, [*EVERY_2, 10, 15]),
        ({"every_n_steps": 4}, {"every_n_steps": 1}, [4, 8, *range(9, 17)]),
        ({}, {"start_step": 9}, [*EVERY_2, 11, 13, 15]),
        ({}, {"criterion": "magnitude"}, [*EVERY_2, 10, 12, 14, 16]),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::lightning_taylor_prune.errors.PruningWarning")
def test_changed_argument_counts_from_the_resumed_step_on(
    before: dict[str, Any], after: dict[str, Any], steps: list[int], tmp_path: Path
) -> None:
    assert steps_after(tmp_path, before, after) == steps


@pytest.mark.parametrize(
    ("before", "after", "steps", "filters"),
    [
        ({"max_prunes": 4}, {"max_prunes": 8}, EVERY_2, 14),
        ({"max_prunes": 8}, {"max_prunes": 6}, [*EVERY_2, 10, 12], 14),
        ({"max_prunes": 8}, {"max_prunes": 8}, [*EVERY_2, 10, 12, 14, 16], 14),
        ({"max_prunes": 4, "stop_at": {"filters": 20}}, {"max_prunes": 7}, [*EVERY_2, 10, 12, 14], 14),
        ({"max_prunes": 4}, {"max_prunes": 4, "schedule": "cubic"}, EVERY_2, 14),
        ({"filters_per_prune": 1}, {"max_prunes": 6}, [*EVERY_2, 10, 12], 14),
    ],
    ids=str,
)
def test_way_to_a_target_is_spread_anew_over_changed_prunes(
    before: dict[str, Any], after: dict[str, Any], steps: list[int], filters: int, tmp_path: Path
) -> None:
    budget: dict[str, Any] = {"filters_per_prune": None, "stop_at": {"filters": filters}}
    run(tmp_path, None, pruning(**{**budget, **before}), epochs=1)
    callback = pruning(**{**budget, **after})
    run(tmp_path, "epoch=0.ckpt", callback)
    assert [row["step"] for row in callback.history] == steps
    assert (callback.history[-1]["filters"], callback.stop_reason) == (filters, "target")


def test_ended_run_of_an_earlier_version_has_ended(tmp_path: Path) -> None:
    run(tmp_path, None, pruning(max_prunes=2), epochs=1)
    path, key = tmp_path / "epoch=0.ckpt", pruning().state_key
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["callbacks"][key]
    del state["stop_message"], state["attempts"]
    state["stop_reason"] = "all 2 prunes are done"
    for row in state["history"]:
        row["prunable_filters"] = row.pop("num_prunable_filters")
    torch.save(checkpoint, path)
    callback = pruning(max_prunes=2)
    run(tmp_path, "epoch=0.ckpt", callback)
    assert (callback.stop_reason, len(callback.history)) == ("max_prunes", 2)
    assert all(row["num_prunable_filters"] < 28 and "prunable_filters" not in row for row in callback.history)


def test_changed_limits_say_what_becomes_of_pruning(tmp_path: Path) -> None:
    run(tmp_path, None, pruning(), epochs=1)
    callback = pruning(max_prunes=3)
    run(tmp_path, "epoch=0.ckpt", callback)
    assert (callback.stop_reason, callback.stop_message) == ("max_prunes", "all 3 prunes are done")


def test_changed_criterion_drops_the_scores_with_one_warning(tmp_path: Path) -> None:
    run(tmp_path, None, pruning(every_n_steps=3), epochs=1)
    with pytest.warns(PruningWarning, match=r"of `taylor`, and now `taylor_weight` judges") as caught:
        run(tmp_path, "epoch=0.ckpt", pruning(every_n_steps=3, criterion="taylor_weight"))
    assert len([w for w in caught if "judges" in str(w.message)]) == 1


def test_changed_target_is_refused(tmp_path: Path) -> None:
    run(tmp_path, None, pruning(target="network"), module=TwoStage(), epochs=1)
    with pytest.raises(MisconfigurationException, match="`target` to be 'network', .* but got 'head'"):
        run(tmp_path, "epoch=0.ckpt", pruning(target="head"), module=TwoStage())


class Renamed(TaylorPruningCallback):
    """The same callback under another name."""


def test_a_subclass_goes_on_with_the_state_of_its_base(tmp_path: Path) -> None:
    run(tmp_path, None, pruning(), epochs=1)
    callback = Renamed(every_n_steps=2, filters_per_prune=1, max_prunes=None)
    run(tmp_path, "epoch=0.ckpt", callback)
    assert [row["step"] for row in callback.history] == [*EVERY_2, 10, 12, 14, 16]


def test_a_callback_can_be_added_at_resume(tmp_path: Path) -> None:
    run(tmp_path, None, epochs=1)
    callback = pruning()
    run(tmp_path, "epoch=0.ckpt", callback)
    assert [row["step"] for row in callback.history] == [10, 12, 14, 16]


# --- several callbacks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"), [("network", None), (None, "head"), ("network", "network.0")], ids=["all", "head", "layer"]
)
def test_overlapping_targets_are_refused(first: str | None, second: str | None, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=f"target={first!r}.*target={second!r}"):
        run(tmp_path, None, pruning(target=first), pruning(target=second), module=TwoStage())


def two(**arguments: Any) -> list[TaylorPruningCallback]:
    return [pruning(target="network", **arguments), pruning(target="head", every_n_steps=3, **arguments)]


def test_two_callbacks_on_two_targets_resume_bit_for_bit(tmp_path: Path) -> None:
    whole = run(tmp_path, None, *two(), module=TwoStage())
    callbacks = two()
    resumed = run(tmp_path, "epoch=0.ckpt", *callbacks, module=TwoStage())
    assert [len(c.history) for c in callbacks] == [7, 5]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_two_callbacks_can_become_one(tmp_path: Path) -> None:
    run(tmp_path, None, *two(), module=TwoStage(), epochs=1)
    callback = two()[1]
    module = run(tmp_path, "epoch=0.ckpt", callback, module=TwoStage())
    assert len(callback.history) == 5 and module.network[0].out_channels < 8


def test_two_callbacks_give_the_validation_schedule_back() -> None:
    module = TwoStage()
    fitting = trainer(more_callbacks=two(), check_val_every_n_epoch=1, num_sanity_val_steps=0)
    fitting.fit(module, loader(), loader(seed=1))
    assert (fitting.val_check_batch, fitting.check_val_every_n_epoch) == (8, 1)


# --- a network that changes -----------------------------------------------------------------------------------------


def wider(module: Classifier) -> None:
    module.network[3] = nn.Conv2d(module.network[0].out_channels, 20, 3)
    module.network[4], module.network[8] = nn.BatchNorm2d(20), nn.Linear(20, 4)


def other_class(module: Classifier) -> None:
    module.network[2] = nn.SELU()


@pytest.mark.parametrize("criterion", ["taylor", "taylor_examples"])
@pytest.mark.parametrize("change", [wider, other_class])
def test_network_that_was_changed_between_two_fits_is_analysed_anew(change: Any, criterion: str) -> None:
    module, callback = Classifier(), pruning(criterion=criterion)
    trainer(callback).fit(module, loader())
    change(module)
    with pytest.warns(UserWarning, match="was changed since the last `fit`"):
        trainer(callback).fit(module, loader())
    x = next(iter(loader()))[0]
    assert len(callback.history) == 4 and module(x).shape == (8, 4)


def test_network_that_was_not_changed_is_pruned_on() -> None:
    module, callback = Classifier(), pruning()
    for _ in range(2):
        trainer(callback).fit(module, loader())
    assert len(callback.history) == 8
