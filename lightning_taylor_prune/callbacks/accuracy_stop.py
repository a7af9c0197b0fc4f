"""Pruning that must not spoil a metric: it waits for validations, and takes back what they do not bear out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer

from lightning_taylor_prune.callbacks.arguments import others_of
from lightning_taylor_prune.callbacks.metrics import log_taken_back, validation_metrics
from lightning_taylor_prune.callbacks.steps import PruningSteps
from lightning_taylor_prune.callbacks.strategies import Rewrap
from lightning_taylor_prune.callbacks.trainer_compat import is_validation_due, validate_now
from lightning_taylor_prune.pruning.accuracy_stop import MetricLimit, Standing
from lightning_taylor_prune.pruning.beside import Beside
from lightning_taylor_prune.pruning.rollback import Snapshot, restore_
from lightning_taylor_prune.pruning.stop import StopReason
from lightning_taylor_prune.pruning.transaction import Assignment, Step

if TYPE_CHECKING:
    from lightning_taylor_prune.groups.groups import ChannelGroups
    from lightning_taylor_prune.pruning.pruner import Pruner

Pending = Literal["keep", "take back"]


@dataclass
class Watch:
    """What a callback knows of the limits in `stop_if`; plain data and tensors in a checkpoint.

    Attributes:
        limits: The limits.
        standing: Where the network stands against them.
        snapshot: The last network that held them.
        prunes: Rows of the history at that time.
        kept: Units that the groups had then; ``None`` as long as nothing has been removed since.
        pending: What the last validation has led to, if that is not done yet.
        is_asked: A validation has been asked for, so that the next prune can follow.
        is_due: A validation follows this batch.
    """

    limits: Sequence[MetricLimit] = ()
    standing: Standing = field(default_factory=Standing)
    snapshot: Snapshot | None = None
    prunes: int = 0
    kept: Mapping[str, Any] | None = None
    pending: Pending | None = None
    is_asked: bool = False
    is_due: bool = False

    def as_data(self) -> dict[str, Any]:
        """Return everything but the limits."""
        own = {name: value for name, value in vars(self).items() if name != "limits"}
        snapshot = None if self.snapshot is None else dict(vars(self.snapshot))
        return {**own, "standing": self.standing.as_data(), "snapshot": snapshot}

    def load(self, data: Mapping[str, Any] | None) -> None:
        """Take up what :meth:`as_data` returned; ``None`` to begin anew."""
        fresh = Watch(self.limits)
        vars(self).update(vars(fresh) if data is None else data)
        if data is not None:
            self.standing = Standing(**data["standing"])
            self.snapshot = None if data["snapshot"] is None else Snapshot(**data["snapshot"])


class TakenBack:
    """The step of a rollback that concerns the history, and the groups of the pruner.

    Args:
        rows: Rows of the prunes that are taken back.
        pruner: The pruner; ``None`` in a training that is resumed and not analysed yet.
        kept: Units that the groups had before.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], pruner: Pruner | None, kept: Mapping[str, Any]) -> None:
        self._rows, self._pruner, self._kept = rows, pruner, kept
        self._groups = None if pruner is None else pruner.groups

    def commit(self) -> None:
        """Take up the former groups; the scores since then are of other units."""
        for row in self._rows:
            row["taken_back"] = True
        if self._pruner is not None:
            self._take_up(self._pruner, self._pruner.groups.unpruned().restricted(self._kept))

    def rollback(self) -> None:
        """Take up the groups of the smaller network again."""
        for row in self._rows:
            row["taken_back"] = False
        if self._pruner is not None and self._groups is not None and self._pruner.groups is not self._groups:
            self._take_up(self._pruner, self._groups)

    def _take_up(self, pruner: Pruner, groups: ChannelGroups) -> None:
        pruner.groups = groups
        pruner.restart_criterion()


class AccuracyStopping(PruningSteps):
    """The part of the callback that keeps to `stop_if`.

    A network holds `stop_if` once a validation has found it so. Only a network that holds it is pruned; a copy of it is
    kept on the CPU. If the pruned network misses a limit in ``patience`` validations in a row, or has not been seen to
    hold it when training ends, the copy comes back: between two batches, when whatever others do around a validation
    (averages that take the place of the weights) is undone.

    Args:
        target: Name of the submodule to prune.
        copies: Copies of the network to prune with it.
        limits: What `stop_if` says.
    """

    def __init__(self, target: str | None, copies: Sequence[Any], limits: Sequence[MetricLimit]) -> None:
        super().__init__(target, copies)
        self._watch = Watch(limits)
        self.further_limits = {"stop_if": [list(vars(limit).values()) for limit in limits]} if limits else {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to train where nothing is validated."""
        if stage == "fit" and self._watch.limits and not trainer.enable_validation:
            raise MisconfigurationException(
                "Expected a Trainer that validates, as `stop_if` is judged by validation metrics, but there is no "
                "validation: define `validation_step`, hand over a validation loader, and do not set "
                "`limit_val_batches=0`."
            )
        super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the network by what this validation has found."""
        super().on_validation_end(trainer, pl_module)
        whole = not trainer.sanity_checking or (trainer.num_sanity_val_steps == float("inf") and not self.history)
        if trainer.state.fn == "fit" and whole and self._is_watched:
            assert self._ranks is not None
            self._judge(self._ranks.from_first(validation_metrics(trainer)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what a validation at the end of the epoch has led to, before checkpoints are written."""
        self._settle(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return where pruning stands, with the last network that held `stop_if`."""
        state = super().state_dict()
        return {**state, "stop_if": self._watch.as_data()} if state and self._watch.limits else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint left off."""
        super().load_state_dict(state_dict)
        if state_dict:
            self._watch.load(self._resumed.pop("stop_if", None))

    @property
    def _is_watched(self) -> bool:
        """Whether a validation can still change something: at the end, the last prune must be seen to hold."""
        over = self.stop_reason is not None and (self._watch.standing.held or not self._is_pruned)
        return bool(self._watch.limits) and not over

    @property
    def _is_pruned(self) -> bool:
        return any(not row.get("taken_back") for row in self.history)

    def _forget(self) -> None:
        super()._forget()
        self._watch.load(None)

    def _judge(self, values: Mapping[str, float]) -> None:
        watch = self._watch
        standing = watch.standing.after(watch.limits, values, self._is_pruned)
        watch.standing, watch.is_due = standing, False
        if standing.held and standing.complete:
            watch.pending = "keep"
        elif watch.snapshot is not None and standing.is_over(watch.limits):
            watch.pending = "take back"

    def _settle(self, trainer: Trainer, pl_module: LightningModule, batch: Any = None) -> None:
        """Do what the last validation has led to; catch up on one that a checkpoint was written before."""
        watch = self._watch
        if watch.is_due and self._is_watched:
            watch.is_due = False
            validate_now(trainer, batch)
        pending, watch.pending = watch.pending, None
        if pending == "keep":
            self._keep(trainer, pl_module)
        elif pending == "take back":
            self._take_back(trainer, pl_module, watch.standing.breach or "a limit of `stop_if` was missed")

    def _end_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what is to be done, and hand out no network that was not seen to hold `stop_if`."""
        self._settle(trainer, pl_module)
        if self._is_watched and self._is_pruned and not self._watch.standing.held:
            why = self._watch.standing.breach or "no validation followed the last prune"
            self._take_back(trainer, pl_module, f"{why}, and training is over")

    def _must_wait(self, trainer: Trainer) -> bool:
        """Whether the network must be seen to hold `stop_if` before it is pruned; if so, ask for a validation."""
        watch = self._watch
        if not self._is_watched or (watch.standing.held and watch.snapshot is not None):
            watch.is_asked = False
            return False
        unknown = watch.standing.unknown(watch.limits)
        if not watch.is_asked and (self.validate_after_prune or unknown):
            self._validation.make(trainer)
            watch.is_asked = True
            return True
        if unknown:
            raise _never_logged(unknown, watch.standing, self._is_pruned)
        watch.is_asked = False
        self._intervals = self._intervals_at(trainer.global_step)
        return True

    def _prune(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune; from then on the network must be seen to hold `stop_if` again."""
        prunes = len(self.history)
        kept = self.groups.kept_units() if self.groups is not None and prunes else None
        super()._prune(trainer, pl_module)
        if len(self.history) > prunes and self._watch.limits and self.groups is not None:
            # Before the first prune the groups may be found anew, as then more is known of what follows what.
            kept = self.groups.unpruned().kept_units() if kept is None else kept
            self._watch.kept = {name: torch.from_numpy(units.copy()) for name, units in kept.items()}
            self._watch.standing = self._watch.standing.after_prune()

    def _note_validation(self, trainer: Trainer) -> None:
        """Note whether a validation follows: one that a checkpoint of this batch is written before is not lost."""
        self._watch.is_due = self._is_watched and is_validation_due(trainer)

    def _keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        watch = self._watch
        watch.snapshot, watch.kept = None, None
        if self._is_watched:
            beside, without = self._beside(trainer, pl_module), _targets_of_others(self, trainer)
            watch.snapshot = Snapshot.of(pl_module, trainer.optimizers, beside, without)
            watch.prunes = len(self.history)

    def _take_back(self, trainer: Trainer, pl_module: LightningModule, why: str) -> None:
        """Have the last network that held `stop_if` come back, and end pruning."""
        watch = self._watch
        assert watch.snapshot is not None
        taken = [row for row in self.history[watch.prunes :] if not row.get("taken_back")]
        if taken and self.pruner is not None and (watch.kept or {}).keys() != self.pruner.groups.kept_units().keys():
            watch.standing, watch.snapshot = Standing(held=True), None
            reason = f"{why}; the former network cannot come back, as its parameters had other names"
            return self._stop(StopReason.ACCURACY, reason, warn=True)
        steps: list[Step] = [Rewrap(trainer.strategy, pl_module, self._ranks)]
        if taken:
            kept = dict(watch.kept or {})
            steps.append(TakenBack(taken, self.pruner, kept))
            steps.append(
                Assignment(self, "_resumed", self._resumed and {**self._resumed, "kept": kept, "scores": None})
            )
        beside, without = self._beside(trainer, pl_module), _targets_of_others(self, trainer)
        restore_(pl_module, watch.snapshot, trainer.optimizers, beside, self._original_attributes, without, steps)
        watch.standing, watch.snapshot, watch.kept = Standing(watch.standing.before, held=True), None, None
        self._stop(StopReason.ACCURACY, f"{why}; {_what_came_back(watch.prunes, taken)}")
        if self.pruner is not None:
            log_taken_back(trainer, self.pruner.groups, self.pruner.batch_size, len(taken))

    @property
    def _original_attributes(self) -> Mapping[str, Mapping[str, Any]]:
        if self.pruner is not None:
            return self.pruner.original.attributes
        original: Mapping[str, Mapping[str, Any]] = self._resumed["original"]["attributes"]
        return original

    def _beside(self, trainer: Trainer, pl_module: LightningModule) -> Beside:
        holders = trainer.callbacks  # type: ignore[attr-defined]
        return Beside.of(pl_module, self._copies.find(trainer, pl_module), holders)


def _what_came_back(prunes: int, taken: Sequence[Mapping[str, Any]]) -> str:
    which = f"the network of prune {prunes}" if prunes else "the unpruned network"
    if not taken:
        return f"{which} has its former weights again"
    counts = " and ".join(str(row["count"]) for row in taken)
    return f"{which} came back, and prune {counts} was taken back"


def _targets_of_others(callback: AccuracyStopping, trainer: Trainer) -> list[str]:
    """Return the parts of the module that other callbacks prune: they are not this one's to bring back."""
    return [other.target for other in others_of(callback, trainer) if other.target is not None]


def _never_logged(unknown: Sequence[str], standing: Standing, is_pruned: bool) -> MisconfigurationException:
    names = ", ".join(map(repr, unknown))
    if standing.logged is None:
        return MisconfigurationException(
            f"Expected a validation before the first prune, for {names} in `stop_if`, but the Trainer ran none when it "
            "was asked to. Is the validation loader empty?"
        )
    if is_pruned and all(name in standing.logged for name in unknown):
        return MisconfigurationException(
            f"Expected to know {names} of the unpruned network, for `stop_if`, but the checkpoint was pruned without "
            "`stop_if` and does not tell it. Say `below` (or `above`) in place of `drop`."
        )
    logged = ", ".join(standing.logged) or "nothing"
    return MisconfigurationException(
        f"Expected the validation to log {names}, which `stop_if` names, but it logs: {logged}. Log the metric in "
        "`validation_step` by `self.log`, or correct its name."
    )
