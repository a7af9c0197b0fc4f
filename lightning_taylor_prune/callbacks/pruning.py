"""The Lightning callback: when to score, when to cut, what to log. Every decision is a function elsewhere."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_taylor_prune.callbacks.arguments import check_arguments, check_positive, check_stop_at
from lightning_taylor_prune.callbacks.first_batch import Watch
from lightning_taylor_prune.callbacks.strategies import Rewrap, check_strategy
from lightning_taylor_prune.callbacks.trainer_compat import (
    ValidationRequest,
    averaged_copies,
    batch_size,
    check_launcher,
    forget_compiled,
    gradient_scale,
    logging_off,
    validation_metrics,
    window_correction,
)
from lightning_taylor_prune.criteria.criterion import CRITERIA, Criterion
from lightning_taylor_prune.criteria.normalize import normalize_scores, warn_unscored
from lightning_taylor_prune.errors import PlanError, PruningError, PruningWarning, TraceError
from lightning_taylor_prune.groups.dry_run import Divergence
from lightning_taylor_prune.groups.find import groups_of_calls
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.plan import PruningPlan
from lightning_taylor_prune.pruning.checkpoint import (
    KEY,
    attributes_of,
    is_loadable,
    make_loadable,
    set_attributes_of,
    shapes_of,
)
from lightning_taylor_prune.pruning.optimizer_state import OptimizerStateMode
from lightning_taylor_prune.pruning.prune import cut_tensors_
from lightning_taylor_prune.pruning.ranks import Ranks
from lightning_taylor_prune.pruning.select import (
    Choice,
    Options,
    choose,
    excluded_groups,
    highest_removed,
    score_summary,
)
from lightning_taylor_prune.report import filters_table
from lightning_taylor_prune.tracing.call import Call, decode_calls, encode_calls


class TaylorPruningCallback(Callback):
    """Prunes the network while it trains; it comes out of ``fit`` physically smaller.

    After every backward pass the importance of every filter is accumulated; every ``every_n_steps`` optimizer steps
    the least important ones leave, with everything that reads or writes them. Nothing in the LightningModule changes:
    the first training batch shows how it calls its network.

    Args:
        every_n_steps: Optimizer steps between two prunes.
        filters_per_prune: Units to remove at each prune. A unit is mostly one filter; coupled filters (a residual
            stream's, say) count once.
        max_prunes: Prunes after which training just goes on; ``None`` for no limit.
        start_step: Optimizer step at which the first interval begins.
        target: Name of the submodule to prune. By default what ``training_step`` calls: the module's own
            ``forward``, or else each network that it calls.
        criterion: ``"taylor"``, ``"taylor_examples"``, ``"taylor_gate"``, ``"taylor_weight"``,
            ``"taylor_activation"``, ``"magnitude"``, ``"random"``, or any name given to
            :func:`~lightning_taylor_prune.criteria.criterion.register_criterion`.
        optimizer_state: ``"reset"`` clears momentum and moments of all parameters at each prune; ``"slice"`` keeps
            those of the channels that stay.
        min_channels: Channels that every group keeps at least.
        max_pruning_ratio: Largest fraction of a group's channels that may leave over the whole training.
        round_to: The channels that a group keeps are a multiple of this (8 suits tensor cores).
        exclude: Layers that keep all their filters: names, shell patterns, or names of modules that contain them.
        validate_after_prune: Run the validation loop after each prune.
        stop_at: Costs never to undercut, such as ``{"params": 0.45}``: ``params``, ``macs`` or ``filters``, as a
            fraction of the original network (a float up to 1) or absolute (an int).
        normalize: How scores are divided within each group before they are compared over all: ``"none"``, ``"mean"``,
            ``"l2"``, ``"max"``; by default what suits the criterion.
        macs_weight: Preference for units that cost many MACs; see
            :func:`~lightning_taylor_prune.criteria.normalize.normalize_scores`.
        rewrite_hard_coded: Prune sizes that stand as numbers in a module's code too, see
            :func:`~lightning_taylor_prune.groups.find_groups`.
        rank_timeout: Under DDP, seconds to wait at a prune for other ranks before giving up with an error.

    Attributes:
        history: One dict per prune: ``step``, ``count``, ``removed``, ``params``, ``macs`` (per example), ``filters``,
            ``prunable_filters``, ``score_threshold``, ``skipped_minibatches``, ``scores`` (a few numbers for each
            group: :func:`~lightning_taylor_prune.pruning.select.score_summary`), and ``metrics`` of the validation that
            followed.
        groups: The groups of the network as it is now; ``None`` before the first batch.
        filters_before: Filters of every layer before the first prune.
        filters_after: Filters of every layer now.
        stop_reason: Why pruning ended, or ``None`` while it goes on.

    Raises:
        MisconfigurationException: An argument cannot be used.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[TaylorPruningCallback(every_n_steps=50, filters_per_prune=8)], logger=False)
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        filters_per_prune: int = 8,
        max_prunes: int | None = 30,
        start_step: int = 0,
        target: str | None = None,
        criterion: str = "taylor",
        optimizer_state: OptimizerStateMode = "reset",
        min_channels: int = 1,
        max_pruning_ratio: float = 0.9,
        round_to: int = 1,
        exclude: Sequence[str] = (),
        validate_after_prune: bool = True,
        stop_at: Mapping[str, float | int] | None = None,
        normalize: str | None = None,
        macs_weight: float = 0.0,
        rewrite_hard_coded: bool = False,
        rank_timeout: float = 600.0,
    ) -> None:
        super().__init__()
        check_positive(
            every_n_steps=every_n_steps,
            filters_per_prune=filters_per_prune,
            min_channels=min_channels,
            round_to=round_to,
        )
        check_arguments(max_prunes, start_step, criterion, optimizer_state, max_pruning_ratio, exclude, normalize)
        check_stop_at(stop_at)
        self.every_n_steps = every_n_steps
        self.filters_per_prune = filters_per_prune
        self.max_prunes = max_prunes
        self.start_step = start_step
        self.target = target
        self.criterion = criterion
        self.optimizer_state: OptimizerStateMode = optimizer_state
        self.validate_after_prune = validate_after_prune
        self.normalize = normalize or CRITERIA[criterion].normalize_default
        self.macs_weight = macs_weight
        self.rewrite_hard_coded = rewrite_hard_coded
        self.rank_timeout = rank_timeout
        self.options = Options(min_channels, max_pruning_ratio, round_to, tuple(exclude), dict(stop_at or {}))

        self.history: list[dict[str, Any]] = []
        self.groups: ChannelGroups | None = None
        self.filters_before: dict[str, int] = {}
        self.filters_after: dict[str, int] = {}
        self.stop_reason: str | None = None
        self._scores: Criterion | None = None
        self._watch = Watch(target)
        self._fixed: tuple[str, ...] = ()
        self._batch_size = 1
        self._seen_step = -1
        self._scored_step = -1
        self._intervals = 0
        self._refused: set[str] = set()
        self._validation = ValidationRequest()
        self._original: dict[str, Any] = {}
        self._resumed: dict[str, Any] = {}
        self._load_hook: Any = None
        self._ranks: Ranks | None = None
        self._calls: Sequence[Call] = ()
        self._module: LightningModule | None = None

    @property
    def state_key(self) -> str:
        """Two callbacks on two targets keep their states apart in a checkpoint."""
        return self._generate_state_key(target=self.target, criterion=self.criterion)

    # --- hooks, in the order in which they run ------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work before any data is read."""
        if not is_loadable(pl_module):
            check_launcher(trainer)
            self._load_hook = make_loadable(pl_module)
        if stage != "fit":
            return
        try:
            check_strategy(trainer.strategy)
        except PruningError as error:
            raise MisconfigurationException(str(error)) from error
        self._ranks = Ranks(self.state_key, self.rank_timeout)
        if self._module is not pl_module:
            self._forget()
            self._module = pl_module
        if self.target is not None and self.target not in dict(pl_module.named_modules()):
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise MisconfigurationException(
                f"Expected `target` to name a submodule of {type(pl_module).__name__}, but got {self.target!r}. "
                f"Its children are: {names}."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take back what `setup` put on the module."""
        if self._load_hook is not None:
            self._load_hook.remove()
            self._load_hook = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the step count of a training that goes on."""
        self._seen_step, self._scored_step = trainer.global_step, -1
        if not self._resumed:
            self._intervals = self._intervals_at(trainer.global_step)
            if self._scores is not None and self.stop_reason is None:  # a second `fit`: criteria may need their hooks
                so_far = self._scores.state_dict()
                self._new_scores(pl_module)
                self._scores.load_state_dict(so_far)
        elif (
            self.groups is None
            and self.stop_reason is None
            and (encoded := self._resumed["original"]["calls"]) is not None
        ):
            self._analyse(pl_module, decode_calls(encoded, pl_module.device))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Watch the first batch, to see how the network is called; the second too, if only parts can be traced."""
        self._validation.withdraw(trainer)
        if self.groups is None and self.stop_reason is None:
            self._watch.begin(pl_module)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in the gradients of one optimizer step, once they are complete."""
        if self.stop_reason is not None or not pl_module.automatic_optimization:
            return
        if trainer.fit_loop._should_accumulate():
            return
        if self._scored_step == trainer.global_step:  # a closure that is evaluated again (L-BFGS)
            if self._scores is not None:
                self._scores.discard()
            return
        if self.groups is None and not self._analyse_watched(pl_module):
            return
        self._scored_step = trainer.global_step
        self._accumulate(trainer, gradient_scale(trainer) * window_correction(trainer))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Take in gradients under manual optimization: only here are those of one optimizer known to be complete."""
        if self.stop_reason is not None or pl_module.automatic_optimization or self.groups is None:
            return
        parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
        # The precision plugin has unscaled `.grad` by now, but not what hooks saw in the backward pass.
        hooked = self._scores is not None and self._scores.sees_backward
        self._accumulate(trainer, gradient_scale(trainer) if hooked else 1.0, parameters)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prune if an interval of optimizer steps is complete."""
        step = trainer.global_step
        if self.stop_reason is not None or step == self._seen_step:
            return  # the same step again: inside an accumulation window
        self._seen_step = step
        if self.groups is None:
            if pl_module.automatic_optimization:
                return  # no backward pass yet: the training step returned None
            if not self._analyse_watched(pl_module):
                return
        if (intervals := self._intervals_at(step)) > self._intervals:
            self._intervals = intervals
            self._prune(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the Trainer its own validation schedule back."""
        self._validation.withdraw(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what the network is worth after the last prune."""
        if trainer.sanity_checking or not self.history or self.history[-1]["metrics"]:
            return
        metrics = validation_metrics(trainer)
        self.history[-1]["metrics"] = metrics
        row = {f"prune/{name}": value for name, value in metrics.items()}
        self._log_rows(trainer, {**row, "prune/count": self.history[-1]["count"]})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what has become of every layer."""
        self._validation.withdraw(trainer)
        self._watch.close()
        if self._scores is not None:
            self._scores.close()
        if self.groups is not None and self.history:
            rank_zero_info(filters_table(self.filters_before, self.filters_after, self.history[-1]["params"]))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._watch.close()
        if self._scores is not None:
            self._scores.close()

    def _forget(self) -> None:
        """Begin anew, with another module."""
        self.history, self.groups, self.stop_reason = [], None, None
        self.filters_before, self.filters_after = {}, {}
        self._scores, self._intervals, self._refused = None, 0, set()
        self._watch, self._fixed = Watch(self.target), ()
        self._original, self._resumed = {}, {}

    # --- analysis and scores ------------------------------------------------------------------------------------

    def _intervals_at(self, step: int) -> int:
        return max(step - self.start_step, 0) // self.every_n_steps

    def _analyse_watched(self, pl_module: LightningModule) -> bool:
        """Find groups from what the last batch showed; says whether it showed enough."""
        seen = self._watch.end(pl_module, self._ranks)
        self._fixed = seen.fixed
        try:
            self._analyse(pl_module, seen.calls)
        except TraceError as error:
            self._watch.look_closer(error)
            return False
        if seen.in_parts:
            rank_zero_warn(seen.in_parts, category=PruningWarning)
        return True

    def _analyse(self, pl_module: LightningModule, calls: Sequence[Call]) -> None:
        """Find groups from the ways in which the network is called."""
        self._batch_size = batch_size(calls[0].args, calls[0].kwargs)
        with logging_off(pl_module):
            self.groups = self._find_groups(pl_module, calls, self._resumed.get("kept"))
        self._calls = calls
        self._check_exclude(self.groups)
        self.filters_before, self.filters_after = self.groups.unpruned().filters, self.groups.filters
        self._new_scores(pl_module)
        if self._resumed.get("scores"):
            assert self._scores is not None
            self._scores.load_state_dict(self._resumed["scores"])
        self._resumed = {}
        _say_what_is_locked(self.groups)
        if not self.groups.num_units:
            self._watch.give_up()
            self._stop("nothing can be pruned: every channel is locked")

    def _find_groups(self, pl_module: LightningModule, calls: Sequence[Call], kept: Any) -> ChannelGroups:
        """Analyse the network; of a pruned one what it was before, so that its groups and units are always the same."""
        if kept is None:
            groups = groups_of_calls(pl_module, calls, rewrite_hard_coded=self.rewrite_hard_coded, fixed=self._fixed)
            attributes = attributes_of(pl_module)
            for rule in groups.analysis.changes.size_rules:
                attributes.setdefault(rule.module, {})[rule.path] = rule.original
            self._original = {
                "shapes": shapes_of(pl_module),
                "attributes": attributes,
                "calls": encode_calls(calls, pl_module.device),
                "fixed": list(self._fixed),
            }
            return groups
        now = attributes_of(pl_module)
        shapes = {name: tuple(shape) for name, shape in self._original["shapes"].items()}
        try:
            set_attributes_of(pl_module, self._original["attributes"])
            groups = groups_of_calls(pl_module, calls, shapes, self.rewrite_hard_coded, self._fixed)
        finally:
            set_attributes_of(pl_module, now)
        return groups.restricted(kept)

    def _check_exclude(self, groups: ChannelGroups) -> None:
        try:
            excluded_groups(groups, self.options.exclude)
        except PlanError as error:
            raise MisconfigurationException(str(error)) from error

    def _new_scores(self, pl_module: LightningModule) -> None:
        if self._scores is not None:
            self._scores.close()
        assert self.groups is not None
        self._scores = CRITERIA[self.criterion](pl_module, self.groups)

    def _accumulate(self, trainer: Trainer, scale: float, parameters: set[int] | None = None) -> None:
        if self._scores is None:
            return
        if trainer.global_step >= self.start_step:
            self._scores.update(scale, parameters)
        else:
            self._scores.discard()

    # --- pruning ------------------------------------------------------------------------------------------------

    def _prune(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose, cut, log; or say why not."""
        assert self.groups is not None
        assert self._scores is not None
        raw = self._scores.compute()  # on all ranks: some criteria add up what each of them saw
        if not raw.isfinite().any():
            rank_zero_warn(
                f"Step {trainer.global_step}: no prune, as none of the {self._scores.steps} minibatches since the last "
                "one had finite gradients for the pruned network."
            )
            return
        skipped = self._scores.skipped
        warn_unscored(raw, self.groups)
        scores = normalize_scores(raw, self.groups, self.normalize, self.macs_weight)
        before = self.groups
        choice = self._cut(trainer, pl_module, scores)
        if choice.plan:
            self._new_scores(pl_module)
            threshold = highest_removed(choice.plan, before, scores)
            summary = score_summary(choice.plan, before, scores)
            self._record(trainer, pl_module, len(choice.plan), threshold, skipped, summary)
            if self.validate_after_prune:
                self._validation.make(trainer)
        if choice.reason == "target":
            self._stop(f"the target {dict(self.options.stop_at or {})} would be overshot by the next filter")
        elif choice.reason == "nothing_left":
            self._stop("nothing is left to prune within `min_channels`, `max_pruning_ratio` and `exclude`", warn=True)
        elif self.max_prunes is not None and len(self.history) >= self.max_prunes:
            self._stop(f"all {self.max_prunes} prunes are done")

    def _cut(self, trainer: Trainer, pl_module: LightningModule, scores: Tensor) -> Choice:
        """Cut; groups that the network's code turns out not to let go are left alone from then on."""
        assert self.groups is not None
        copies = averaged_copies(trainer, pl_module)
        ranks = self._ranks or Ranks(self.state_key, self.rank_timeout)
        while True:
            choice = self._choose(scores, ranks)
            divergence = self.groups.verify(pl_module, choice.plan) if choice.plan else None
            ranks.agree(choice.plan.digest() if divergence is None else divergence.message)
            if divergence is not None:
                if not self._analysed_anew(pl_module):
                    self._refuse(choice.plan, divergence)
                continue
            if choice.plan:
                wrapper = Rewrap(trainer.strategy, pl_module)
                cut_tensors_(pl_module, choice.plan, trainer.optimizers, self.optimizer_state, copies, [wrapper])
                self.groups = self.groups.after(choice.plan)
                forget_compiled(pl_module)
            return choice

    def _analysed_anew(self, pl_module: LightningModule) -> bool:
        """Analyse again if the network does other things than it did, uncut (a hook was added); say whether it was."""
        assert self.groups is not None
        if self.groups.verify(pl_module, self.groups.plan({})) is None:
            return False
        before = self.groups
        with logging_off(pl_module):
            self.groups = self._find_groups(pl_module, self._calls, before.kept_units())
        rank_zero_info("The network does other things than in its first batch, and was analysed anew.")
        return True

    def _choose(self, scores: Tensor, ranks: Ranks) -> Choice:
        """Choose on rank 0, for all: scores may differ in their last bits, and then so would the filters."""
        assert self.groups is not None
        usable = _without(scores, self.groups, self._refused)
        own = choose(self.groups, usable, self.filters_per_prune, self.options)
        removed, reason = ranks.from_first([dict(own.plan.removed), own.reason])
        return own if ranks.rank == 0 else Choice(self.groups.plan(removed), reason)

    def _refuse(self, plan: PruningPlan, divergence: Divergence) -> None:
        assert self.groups is not None
        blamed = self.groups.groups_at(divergence) & set(plan.removed) or set(plan.removed)
        self._refused |= blamed
        rank_zero_warn(
            f"A plan was given up: {divergence.message}. From now on these groups are left as they are: "
            f"{', '.join(sorted(blamed))}."
        )

    def _stop(self, reason: str, warn: bool = False) -> None:
        self.stop_reason = reason
        (rank_zero_warn if warn else rank_zero_info)(f"Pruning ends (prunes so far: {len(self.history)}): {reason}.")
        if self._scores is not None:
            self._scores.close()

    # --- checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return where pruning stands, as plain data and tensors."""
        if self.groups is None:
            return dict(self._resumed)
        kept = {name: torch.from_numpy(units.copy()) for name, units in self.groups.kept_units().items()}
        return {
            "history": copy.deepcopy(self.history),
            "intervals": self._intervals,
            "refused": sorted(self._refused),
            "stop_reason": self.stop_reason,
            "kept": kept,
            "original": self._original,
            "scores": self._scores.state_dict() if self._scores is not None else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint left off; the groups follow with the first batch."""
        if not state_dict:
            return
        self._resumed = dict(state_dict)
        self._original = state_dict["original"]
        self._fixed = tuple(self._original.get("fixed", ()))
        self.history = copy.deepcopy(state_dict["history"])
        self._intervals = state_dict["intervals"]
        self._refused = set(state_dict["refused"])
        self.stop_reason = state_dict["stop_reason"]
        self.groups = self._scores = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what the shapes of weights do not tell, for loading without this callback."""
        checkpoint[KEY] = {"attributes": attributes_of(pl_module)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the attributes that the weights' shapes left open."""
        set_attributes_of(pl_module, checkpoint.get(KEY, {}).get("attributes", {}))

    # --- logging ------------------------------------------------------------------------------------------------

    def _record(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        removed: int,
        threshold: float,
        skipped: int,
        scores: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Add a row to the history and send it to the loggers."""
        assert self.groups is not None
        self.filters_after = self.groups.filters
        row = {
            "removed": removed,
            "filters": self.groups.num_filters,
            "prunable_filters": self.groups.num_prunable_filters,
            "params": self.groups.params,
            "macs": self.groups.macs // self._batch_size,
            "score_threshold": threshold,
            "skipped_minibatches": skipped,
        }
        count = len(self.history) + 1
        self.history.append({"step": trainer.global_step, "count": count, **row, "scores": scores, "metrics": {}})
        logged = {f"prune/{name}": float(value) for name, value in row.items()}
        logged["prune/count"] = float(count)
        for name, value in logged.items():
            if math.isfinite(value):
                pl_module.log(name, value, on_step=True, on_epoch=False, logger=False)
        bar = f"prune_of_{self.max_prunes}" if self.max_prunes is not None else "prune"
        pl_module.log(bar, float(count), on_step=True, on_epoch=False, prog_bar=True, logger=False)
        layers = {f"prune/filters_per_layer/{name}": float(n) for name, n in self.filters_after.items()}
        self._log_rows(trainer, {**logged, **layers})

    def _log_rows(self, trainer: Trainer, row: Mapping[str, float]) -> None:
        """Write to the loggers at once: `self.log` only writes at the Trainer's next logging step."""
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in trainer.loggers:
            logger.log_metrics(dict(row), step=step)


def _without(scores: Tensor, groups: ChannelGroups, refused: set[str]) -> Tensor:
    """Return scores with NaN, which is never chosen, for all units of some groups."""
    if not refused:
        return scores
    scores = scores.clone()
    for group in groups:
        if group.name in refused:
            scores[group.first_unit : group.first_unit + group.num_channels] = math.nan
    return scores


def _say_what_is_locked(groups: ChannelGroups) -> None:
    reasons: dict[str, list[str]] = {}
    for entry in groups.locked:
        if "is an output of the network" not in entry.reason:
            reasons.setdefault(entry.reason, []).append(f"{entry.name} ({entry.num_channels})")
    for reason, names in reasons.items():
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        rank_zero_info(f"Not prunable: {', '.join(names[:6])}{more}: {reason}")
