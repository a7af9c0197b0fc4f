"""The callback in real Trainers."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, Subset

from lightning_taylor_prune import LatencyTable, PruningWarning, StopReason, TaylorPruningCallback, find_groups
from lightning_taylor_prune.pruning.costs import COSTS
from tests.latency.clocks import macs
from tests.lightning_modules import (
    Adversarial,
    ChildClassifier,
    Classifier,
    TwoStage,
    loader,
    small_network,
    smooth_network,
    trainer,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def fit(module: pl.LightningModule, callback: TaylorPruningCallback, val: bool = False, **kwargs: Any) -> pl.Trainer:
    run = trainer(callback, **kwargs)
    run.fit(module, loader(), loader(seed=1) if val else None)
    return run


def wide() -> Classifier:
    """Return a classifier with so many filters that one is a small part of every cost."""
    module = Classifier()
    module.network = nn.Sequential(
        nn.Conv2d(1, 100, 3), nn.ReLU(inplace=True), nn.Conv2d(100, 160, 3), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, 4),
    )  # fmt: skip
    return module


class Watch(pl.Callback):
    """Looks at something after every training step."""

    def __init__(self, look: Any) -> None:
        self._look = look

    def on_train_batch_end(self, *args: Any) -> None:
        self._look()


# --- the main job ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Classifier, ChildClassifier, TwoStage], ids=lambda make: make.__name__)
def test_network_comes_out_smaller(make: Any) -> None:
    module = make()
    before = count(module)
    callback = TaylorPruningCallback(every_n_steps=2, filters_per_prune=3, max_prunes=3)
    fit(module, callback)
    assert count(module) < before and count(module) == callback.history[-1]["params"]


def test_features_that_the_training_step_uses_stay() -> None:
    module = TwoStage()
    fit(module, TaylorPruningCallback(every_n_steps=1, filters_per_prune=2))
    assert module.network[3].out_channels == 16


def test_pruned_network_is_still_trained_by_the_optimizer() -> None:
    module = Classifier()
    run = fit(module, TaylorPruningCallback(every_n_steps=3, filters_per_prune=3))
    held = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in module.parameters()}


def test_pruned_network_learns() -> None:
    module = Classifier()
    callback = TaylorPruningCallback(every_n_steps=10, filters_per_prune=3, max_prunes=3)
    fit(module, callback, val=True, max_epochs=25)
    accuracy = (module.eval()(loader().dataset.tensors[0]).argmax(1) == loader().dataset.tensors[1]).float().mean()
    assert accuracy > 0.8


def test_target_restricts_pruning_to_a_submodule() -> None:
    module = TwoStage()
    fit(module, TaylorPruningCallback(every_n_steps=1, filters_per_prune=2, target="head"))
    assert module.network[0].out_channels == 8 and module.head[2].out_features < 12


def test_module_is_left_without_hooks() -> None:
    module = Classifier()
    fit(module, TaylorPruningCallback(every_n_steps=2, criterion="taylor_activation"))
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in module.modules())


@pytest.mark.parametrize(
    "criterion",
    ["taylor", "taylor_examples", "taylor_gate", "taylor_weight", "taylor_activation", "magnitude", "random"],
)
def test_every_criterion_prunes(criterion: str) -> None:
    callback = TaylorPruningCallback(every_n_steps=4, filters_per_prune=2, criterion=criterion)
    fit(Classifier(), callback)
    assert [row["removed"] for row in callback.history] == [2, 2]


def test_history_tells_what_each_group_lost_and_how_it_scored() -> None:
    callback = TaylorPruningCallback(every_n_steps=4, filters_per_prune=3, max_prunes=2)
    fit(Classifier(), callback)
    assert callback.groups is not None
    for row in callback.history:
        scores = row["scores"]
        assert list(scores) == [group.name for group in callback.groups]
        assert sum(group["removed"] for group in scores.values()) == row["removed"] == 3
        assert max(g["removed_score"] for g in scores.values() if g["removed"]) <= row["score_threshold"]


# --- when -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "steps"),
    [
        ({"every_n_steps": 3}, {"max_epochs": 2}, [3, 6, 9, 12, 15]),
        ({"every_n_steps": 3, "start_step": 4}, {"max_epochs": 2}, [7, 10, 13, 16]),
        ({"every_n_steps": 3, "max_prunes": 2}, {"max_epochs": 2}, [3, 6]),
        ({"every_n_steps": 2}, {"max_epochs": 2, "accumulate_grad_batches": 3}, [2, 4, 6]),
        ({"every_n_steps": 8}, {}, [8]),
        ({"every_n_steps": 9}, {}, []),
        ({"every_n_steps": 1}, {"limit_train_batches": 2}, [1, 2]),
    ],
    ids=["plain", "start_step", "max_prunes", "accumulation", "last step", "never", "limit_train_batches"],
)
def test_prunes_at_optimizer_steps(arguments: dict[str, int], options: dict[str, Any], steps: list[int]) -> None:
    callback = TaylorPruningCallback(filters_per_prune=1, **{"max_prunes": None, **arguments})
    fit(Classifier(), callback, **options)
    assert [row["step"] for row in callback.history] == steps


@pytest.mark.parametrize(
    ("cost", "value"), [("params", 0.6), ("macs", 0.5), ("filters", 21)], ids=["params", "macs", "filters"]
)
def test_target_is_reached_but_never_overshot(cost: str, value: float) -> None:
    module = Classifier()
    groups = find_groups(module, torch.zeros(1, 1, 8, 8))
    whole = {"params": groups.params, "macs": groups.macs, "filters": groups.num_filters}[cost]
    floor = value * whole if isinstance(value, float) else value
    callback = TaylorPruningCallback(every_n_steps=1, filters_per_prune=1, max_prunes=None, stop_at={cost: value})
    fit(module, callback, max_epochs=4)
    reached = callback.history[-1][cost]
    assert floor <= reached < floor + 0.1 * whole and "target" in str(callback.stop_reason)


def test_target_out_of_reach_is_refused_before_a_step_is_taken() -> None:
    callback = TaylorPruningCallback(stop_at={"params": 0.1}, max_pruning_ratio=0.3)
    run = trainer(callback)
    with pytest.raises(
        MisconfigurationException, match=r"`stop_at\['params'\]` to be at least .*`max_pruning_ratio=0.3`"
    ):
        run.fit(Classifier(), loader())
    assert run.global_step == 0


def test_reason_to_stop_is_a_value_and_a_sentence() -> None:
    callback = TaylorPruningCallback(every_n_steps=1, stop_at={"filters": 20}, max_prunes=4)
    fit(Classifier(), callback)
    assert callback.stop_reason is StopReason.TARGET
    assert callback.stop_message == "the target is reached: filters 20 (71.4% of 28)"


@pytest.mark.parametrize("cost", ["params", "macs", "filters", "memory", "activation_memory"])
def test_way_to_a_target_is_spread_over_the_prunes(cost: str) -> None:
    callback = TaylorPruningCallback(every_n_steps=1, stop_at={cost: 0.6}, max_prunes=6)
    module, costs = wide(), []
    fit(module, callback, more_callbacks=[Watch(lambda: costs.append(COSTS[cost](callback.groups)))], max_epochs=2)
    whole = COSTS[cost](callback.groups.unpruned())
    assert len(callback.history) == 6 and callback.stop_reason == "target"
    for prune, value in enumerate(costs[:6], start=1):
        planned = whole - prune / 6 * 0.4 * whole
        assert planned <= value < planned + 0.04 * whole
    assert 0.6 * whole <= costs[-1] <= 0.606 * whole


@pytest.mark.parametrize(
    ("schedule", "first"),
    [("linear", 0.1), ("cubic", 0.1 * 2.71), (lambda t: t**0.25, 0.1 * 5.62)],
    ids=["linear", "cubic", "function"],
)
def test_schedule_says_how_much_the_first_prune_removes(schedule: Any, first: float) -> None:
    callback = TaylorPruningCallback(every_n_steps=8, stop_at={"params": 0.2}, max_prunes=10, schedule=schedule)
    fit(wide(), callback)
    whole = callback.groups.unpruned().params
    assert callback.history[0]["params"] == pytest.approx((1 - 0.8 * first) * whole, rel=0.03)


def test_prune_whose_share_is_smaller_than_a_unit_waits_and_the_target_is_reached_in_time() -> None:
    callback = TaylorPruningCallback(every_n_steps=1, stop_at={"filters": 0.9}, max_prunes=16)
    fit(Classifier(), callback, max_epochs=3)
    assert len(callback.history) < 16 and callback.history[-1]["step"] <= 16
    assert (callback.history[-1]["filters"], callback.stop_reason) == (26, "target")


def test_function_as_schedule_is_in_copies_but_not_in_checkpoints(tmp_path: Any) -> None:
    callback = TaylorPruningCallback(every_n_steps=2, stop_at={"params": 0.6}, max_prunes=4, schedule=lambda t: t * t)
    fit(Classifier(), callback)
    torch.save(callback.state_dict(), tmp_path / "state")
    assert torch.load(tmp_path / "state", weights_only=True)["attempts"] == 4
    assert copy.deepcopy(callback).settings.budget.schedule(0.5) == 0.25


def test_nothing_left_warns_once_and_training_goes_on() -> None:
    callback = TaylorPruningCallback(every_n_steps=1, filters_per_prune=30, min_channels=6, max_prunes=None)
    with pytest.warns(UserWarning, match="nothing is left to prune") as record:
        run = fit(Classifier(), callback)
    assert run.global_step == 8 and sum("nothing is left" in str(w.message) for w in record) == 1


def test_excluded_layers_keep_their_filters() -> None:
    module = Classifier()
    fit(module, TaylorPruningCallback(every_n_steps=1, filters_per_prune=2, exclude=["network.0"]))
    assert module.network[0].out_channels == 8 and module.network[3].out_channels < 16


def test_round_to_keeps_multiples() -> None:
    module = Classifier()
    fit(module, TaylorPruningCallback(every_n_steps=1, filters_per_prune=4, round_to=4, max_prunes=3))
    assert count(module) < count(Classifier()) and not {m.out_channels % 4 for m in module.network[:4:3]} - {0}


# --- right scores ---------------------------------------------------------------------------------------------------


class ScoreProbe(TaylorPruningCallback):
    """Keeps the scores of the steps so far."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.scores = self.pruner.scores
        self.minibatches = self.pruner.criterion.steps
        super().on_train_end(trainer, pl_module)


def scores(data: Any, dtype: torch.dtype = torch.float64, **kwargs: Any) -> torch.Tensor:
    """Scores over one epoch of a network whose weights stay (learning rate 0)."""
    probe = ScoreProbe(every_n_steps=1000)
    module = Classifier(smooth_network().to(dtype), optimizer=lambda parameters: torch.optim.SGD(parameters, 0.0))
    trainer(probe, **kwargs).fit(module, data)
    return probe.scores


@pytest.mark.parametrize(("batch_size", "accumulated"), [(4, 2), (2, 4)], ids=["two", "four"])
def test_accumulation_scores_as_big_batches(batch_size: int, accumulated: int) -> None:
    accumulating = scores(loader(32, batch_size), accumulate_grad_batches=accumulated)
    torch.testing.assert_close(accumulating, scores(loader(32, 8)))


def test_partial_accumulation_window_scores_as_the_batch_it_is() -> None:
    whole = loader(16, 4).dataset
    first, rest = Subset(whole, range(12)), Subset(whole, range(12, 16))
    expected = (scores(DataLoader(first, 12)) + scores(DataLoader(rest, 4))) / 2
    torch.testing.assert_close(scores(DataLoader(whole, 4), accumulate_grad_batches=3), expected)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"gradient_clip_val": 1e-3}, 1e-9),
        ({"precision": "64-true"}, 1e-5),
        ({"precision": "bf16-true"}, 0.1),
        ({"precision": "bf16-mixed"}, 0.1),
        (
            {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))]},
            0.05,
        ),
    ],
    ids=["clipping", "64-true", "bf16-true", "bf16-mixed", "16-mixed"],
)
def test_scores_do_not_depend_on(options: dict[str, Any], tolerance: float) -> None:
    plain, other = scores(loader(32), torch.float32), scores(loader(32), torch.float32, **options)
    assert ((plain - other).abs().max() / plain.max()) <= tolerance


def test_closure_evaluated_again_counts_once() -> None:
    probe = ScoreProbe(every_n_steps=1000)
    module = Classifier(smooth_network(), optimizer=lambda p: torch.optim.LBFGS(p, max_iter=4))
    fit(module, probe)
    assert probe.minibatches == 8


def test_stale_gradients_of_the_other_optimizer_do_not_count() -> None:
    stale, toggled = ScoreProbe(every_n_steps=1000), ScoreProbe(every_n_steps=1000)
    fit(Adversarial(), stale)
    fit(Adversarial(toggle=True), toggled)
    torch.testing.assert_close(stale.scores, toggled.scores)


def test_manual_optimization_prunes_both_networks() -> None:
    module = Adversarial()
    before = count(module.generator), count(module.discriminator)
    fit(module, TaylorPruningCallback(every_n_steps=4, filters_per_prune=8, max_prunes=3, normalize="mean"))
    assert count(module.generator) < before[0] and count(module.discriminator) < before[1]


class SometimesNaN(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch) * (math.nan if batch_idx in self.bad else 1.0)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for p in self.parameters():
            if p.grad is not None and not p.grad.isfinite().all():
                p.grad = None


def test_nan_minibatch_is_skipped_and_counted() -> None:
    module = SometimesNaN()
    module.bad = {1, 2}
    callback = TaylorPruningCallback(every_n_steps=4, filters_per_prune=2)
    fit(module, callback)
    assert [row["skipped_minibatches"] for row in callback.history] == [2, 0]


def test_never_prunes_upon_nan_alone() -> None:
    module = SometimesNaN()
    module.bad = set(range(8))
    callback = TaylorPruningCallback(every_n_steps=4)
    with pytest.warns(UserWarning, match=r"none of the \d minibatches"):
        fit(module, callback)
    assert callback.history == []


@pytest.mark.parametrize("skipped", [0, 1], ids=["first", "second"])
def test_training_step_that_returns_none_is_no_minibatch(skipped: int) -> None:
    class Skipping(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == skipped else super().training_step(batch, batch_idx)

    probe = ScoreProbe(every_n_steps=1000)
    fit(Skipping(), probe)
    assert probe.minibatches == 7


def test_units_behind_a_frozen_layer_are_pruned() -> None:
    module = Classifier()
    module.network[3].requires_grad_(False)
    callback = TaylorPruningCallback(every_n_steps=4, filters_per_prune=4, min_channels=6)
    fit(module, callback)
    assert module.network[0].out_channels == 6


def test_layers_through_which_no_gradient_flows_are_kept_with_a_warning() -> None:
    module = Classifier()
    module.network[:4].requires_grad_(False)
    callback = TaylorPruningCallback(every_n_steps=4, filters_per_prune=4)
    with pytest.warns(PruningWarning, match=r"no score.*network\.0"):
        fit(module, callback)
    assert module.network[0].out_channels == 8 and module.network[3].out_channels == 12 - 4


# --- logs -----------------------------------------------------------------------------------------------------------


def test_validation_follows_every_prune() -> None:
    callback = TaylorPruningCallback(every_n_steps=3, filters_per_prune=2)
    fit(Classifier(), callback, val=True)
    assert all({"val_loss", "val_acc"} <= set(row["metrics"]) for row in callback.history)


def test_trainers_own_validation_schedule_is_given_back() -> None:
    module, steps = Classifier(), []
    module.on_validation_start = lambda: steps.append(module.global_step)
    run = fit(
        module, TaylorPruningCallback(every_n_steps=3), val=True, num_sanity_val_steps=0, check_val_every_n_epoch=1
    )
    assert (steps, run.val_check_batch) == ([3, 6, 8], 8)


def test_no_validation_if_not_asked_for() -> None:
    module, steps = Classifier(), []
    module.on_validation_start = lambda: steps.append(module.global_step)
    fit(module, TaylorPruningCallback(every_n_steps=3, validate_after_prune=False), val=True, num_sanity_val_steps=0)
    assert steps == [8]


def test_rows_reach_the_logger_at_once(tmp_path: Any) -> None:
    logger = CSVLogger(tmp_path)
    callback = TaylorPruningCallback(every_n_steps=3, filters_per_prune=2)
    fit(Classifier(), callback, val=True, logger=logger, log_every_n_steps=1000)
    text = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    wanted = {f"prune/{k}" for k in ("filters", "num_prunable_filters", "params", "macs", "removed", "score_threshold")}
    assert wanted | {"prune/filters_per_layer/network.0", "prune/val_acc"} <= set(text[0].split(","))


def test_metrics_reach_other_callbacks() -> None:
    run = fit(Classifier(), TaylorPruningCallback(every_n_steps=3, filters_per_prune=2))
    assert run.callback_metrics["prune/removed"] == 2


def test_progress_bar_shows_prune_k_of_n() -> None:
    run = fit(Classifier(), TaylorPruningCallback(every_n_steps=3, max_prunes=7))
    assert run.progress_bar_metrics["prune_of_7"] == 2


def test_macs_are_per_example() -> None:
    callback = TaylorPruningCallback(every_n_steps=8, filters_per_prune=1)
    fit(Classifier(), callback)
    module = Classifier()
    groups = find_groups(module, torch.zeros(1, 1, 8, 8))
    assert 0.8 * groups.macs < callback.history[0]["macs"] < groups.macs


# --- wrong input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "`every_n_steps` to be an int of at least 1, but got 0"),
        ({"every_n_steps": 2.5}, "every_n_steps"),
        ({"filters_per_prune": -1}, "filters_per_prune"),
        ({"max_prunes": 0}, "max_prunes"),
        ({"start_step": -1}, "start_step"),
        ({"criterion": "taylr"}, r"`criterion` to be one of .*taylor, .* but got 'taylr'"),
        ({"optimizer_state": "keep"}, "optimizer_state"),
        ({"min_channels": 0}, "min_channels"),
        ({"max_pruning_ratio": 1.5}, "max_pruning_ratio"),
        ({"round_to": 0}, "round_to"),
        ({"exclude": "conv1"}, "list of names"),
        ({"stop_at": {"flops": 0.5}}, "stop_at"),
        ({"stop_at": {"params": -1}}, "positive number"),
        ({"normalize": "softmax"}, "normalize"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        TaylorPruningCallback(**arguments)


def test_missing_target_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(MisconfigurationException, match=r"'backbone'.*network"):
        fit(Classifier(), TaylorPruningCallback(target="backbone"))


def test_target_that_is_never_called_is_refused() -> None:
    module = Classifier()
    module.spare = small_network()
    with pytest.raises(MisconfigurationException, match="`spare`.*no such call"):
        fit(module, TaylorPruningCallback(target="spare"))


def test_exclude_that_matches_nothing_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"'layer9'.*network\.0"):
        fit(Classifier(), TaylorPruningCallback(exclude=["layer9"]))


def test_unsupported_strategy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sharding = type("FSDPStrategy", (), {})()
    monkeypatch.setattr(pl.Trainer, "strategy", property(lambda self: sharding))
    with pytest.raises(MisconfigurationException, match="FSDPStrategy"):
        TaylorPruningCallback().setup(pl.Trainer.__new__(pl.Trainer), Classifier(), "fit")


# --- built by others ------------------------------------------------------------------------------------------------


def test_hydra_builds_it() -> None:
    config = {
        "_target_": "lightning_taylor_prune.TaylorPruningCallback",
        "every_n_steps": 7,
        "stop_at": {"params": 0.5},
    }
    assert instantiate(config).settings.constraints.stop_at == {"params": 0.5}


def test_lightning_cli_builds_it() -> None:
    cli = LightningCLI(
        Classifier,
        run=False,
        save_config_callback=None,
        args=[
            "--trainer.callbacks+=lightning_taylor_prune.TaylorPruningCallback",
            "--trainer.callbacks.every_n_steps=7",
            "--trainer.callbacks.stop_at={params: 0.5}",
            "--trainer.callbacks.exclude=[network.0]",
            "--trainer.logger=false",
            "--trainer.accelerator=cpu",
        ],
    )
    built = next(c for c in cli.trainer.callbacks if isinstance(c, TaylorPruningCallback))
    assert (built.every_n_steps, built.settings.constraints.exclude) == (7, ["network.0"])


# --- what is around the optimizer -----------------------------------------------------------------------------------

SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=100),
    "CosineAnnealingWarmRestarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 1e-3, 1e-1, step_size_up=3),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("optimizer_state", ["reset", "slice"])
def test_schedule_goes_on_as_without_pruning(name: str, optimizer_state: Any) -> None:
    class Scheduled(Classifier):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)
            return [optimizer], [{"scheduler": SCHEDULERS[name](optimizer), "interval": "step"}]

        def on_train_batch_end(self, *args: Any) -> None:
            self.rates.append(self.optimizers().param_groups[0]["lr"])

    plain, pruned = Scheduled(), Scheduled()
    plain.rates, pruned.rates = [], []
    trainer().fit(plain, loader())
    fit(pruned, TaylorPruningCallback(every_n_steps=2, filters_per_prune=2, optimizer_state=optimizer_state))
    assert pruned.rates == plain.rates


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have operators timed by what they multiply."""
    measure = LatencyTable.measure
    options: dict[str, Any] = {"cache_dir": False, "progress": False, "time_part": macs, "max_seconds": 5}
    monkeypatch.setattr(LatencyTable, "measure", lambda groups: measure(groups, **options))


def test_a_latency_is_reached_without_a_table_at_hand(fake_clock: None) -> None:
    callback = TaylorPruningCallback(every_n_steps=2, max_prunes=4, stop_at={"latency": 0.6})
    trainer(callback, max_epochs=2).fit(Classifier(small_network(width=32)), loader())
    assert callback.pruner is not None and callback.groups is not None and callback.stop_reason == "target"
    table = callback.pruner.settings.constraints.latency
    assert table is not None
    assert 0.6 <= table.latency(callback.groups) / table.latency(callback.groups.unpruned()) <= 0.6 * 1.03


def test_a_resumed_run_goes_on_with_the_latencies_that_were_measured(
    fake_clock: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"every_n_steps": 4, "max_prunes": 4, "rank_by": "score_per_ms"}
    first = TaylorPruningCallback(**arguments)
    fitting = trainer(first)
    fitting.fit(Classifier(), loader())
    fitting.save_checkpoint(tmp_path / "first.ckpt")
    monkeypatch.setattr(LatencyTable, "measure", None)
    second = TaylorPruningCallback(**arguments)
    trainer(second, max_epochs=2).fit(Classifier(), loader(), ckpt_path=tmp_path / "first.ckpt")
    assert len(second.history) > len(first.history)
