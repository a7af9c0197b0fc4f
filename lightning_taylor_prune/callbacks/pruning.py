"""The Lightning callback: when to score, when to prune, what to log. What is done then stands in `pruning/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_taylor_prune.callbacks.accuracy_stop import AccuracyStopping
from lightning_taylor_prune.callbacks.arguments import has_other, refuse_overlap, structure_of
from lightning_taylor_prune.callbacks.copies import check_copies
from lightning_taylor_prune.callbacks.first_batch import calls_of_checkpoint
from lightning_taylor_prune.callbacks.strategies import check_strategy
from lightning_taylor_prune.callbacks.trainer_compat import (
    as_misconfiguration,
    check_target,
    gradient_scale,
    parameters_of_step,
    window_correction,
)
from lightning_taylor_prune.callbacks.unprunable import OnUnprunable
from lightning_taylor_prune.pruning.accuracy_stop import metric_limits
from lightning_taylor_prune.pruning.budget import Budget, Schedule
from lightning_taylor_prune.pruning.constraints import Constraints, check_bool, check_choice, check_int, check_number
from lightning_taylor_prune.pruning.costs import Latency
from lightning_taylor_prune.pruning.layers import Layers
from lightning_taylor_prune.pruning.optimizer_state import OptimizerStateMode
from lightning_taylor_prune.pruning.rank_by import RankBy
from lightning_taylor_prune.pruning.ranks import Ranks
from lightning_taylor_prune.pruning.settings import Settings
from lightning_taylor_prune.report import filters_table


class TaylorPruningCallback(AccuracyStopping):
    """Prunes the network while it trains; it comes out of ``fit`` physically smaller.

    After every backward pass the importance of every filter is accumulated; every ``every_n_steps`` optimizer steps
    the least important ones are removed, with everything that reads or writes them. Nothing in the LightningModule
    changes: the first training batch shows how it calls its network.

    Args:
        every_n_steps: Optimizer steps between two prunes.
        filters_per_prune: Units to remove at each prune. A unit is mostly one filter; coupled filters (a residual
            stream's, say) count once. By default 8; with ``stop_at`` and ``max_prunes``, the way to the target is
            spread over the prunes instead, in units of the target.
        max_prunes: Prunes after which training just goes on; ``None`` for no limit.
        start_step: Optimizer step at which the first interval begins.
        target: Name of the submodule to prune. By default what ``training_step`` calls: the module's own
            ``forward``, or else each network that it calls.
        criterion: ``"taylor"``, ``"taylor_examples"``, ``"taylor_gate"``, ``"taylor_weight"``,
            ``"taylor_activation"``, ``"magnitude"``, ``"random"``, or any name given to
            :func:`~lightning_taylor_prune.criteria.criterion.register_criterion`.
        optimizer_state: ``"reset"`` clears momentum and moments of all parameters at each prune; ``"slice"`` keeps
            those of the channels that are kept.
        min_channels: Channels that every group keeps at least.
        max_pruning_ratio: Largest fraction of a group's channels that may be removed over the whole training, or a dict
            of those by layer, such as ``{"layer3.*": 0.5}``: of several that match the smallest counts; the others
            have 0.9.
        round_to: The channels that a group keeps are a multiple of this (8 suits tensor cores); ``"auto"``: each
            group's own, at which its layers run fast on the device.
        exclude: Layers that keep all their filters: names, shell patterns, names of modules that contain them, or
            classes of either (``[nn.Linear]``).
        include: The same, for the only layers that lose filters. Layers whose filters are tied (by a residual stream)
            lose them where all of these are included.
        validate_after_prune: Run the validation loop after each prune.
        stop_at: Costs to reach and never to undercut, such as ``{"params": 0.45}``: ``params``, ``macs`` (per
            example), ``filters`` (units of linear layers count, too), ``memory`` (bytes of parameters and buffers),
            ``activation_memory`` (bytes alive at once in a forward pass), ``latency`` (milliseconds), as a fraction of
            the original network (a float up to 1) or absolute. A target out of reach is refused in the first batch.
        normalize: How scores are divided within each group before they are compared over all: ``"none"``, ``"mean"``,
            ``"l2"``, ``"max"``; by default what suits the criterion.
        macs_weight: Preference for units that cost many MACs; see
            :func:`~lightning_taylor_prune.criteria.normalize.normalize_scores`.
        rewrite_hard_coded: Prune sizes that stand as numbers in a module's code too, see
            :func:`~lightning_taylor_prune.groups.find.find_groups`.
        on_unprunable: What to do where nothing can be pruned: ``"warn"`` and train on, or raise an ``"error"``.
        copies: Copies of the network to prune with it (modules, dictionaries or lists of tensors, or functions of the
            module that return one), where they are held by neither callbacks nor the module, or change only after the
            first prune and by code that is not seen.
        rank_timeout: Under DDP, seconds to wait at a prune for other ranks before giving up with an error.
        schedule: How the way to ``stop_at`` is spread over the prunes, without ``filters_per_prune``: ``"linear"``,
            ``"cubic"`` (much at first: ``1 - (1 - t) ** 3`` of it after the share ``t`` of the prunes), or a function
            from [0, 1] to [0, 1] that never falls and ends at 1.
        rank_by: What units are compared by: ``"score"`` (the default), ``"score_per_param"``, ``"score_per_mac"``,
            ``"score_per_ms"`` (each with what the network saves without the unit), or ``"isomorphic"`` (only units of
            like structure compete); see :func:`~lightning_taylor_prune.pruning.rank_by.rank_scores`.
        latency: Tells the latency of networks: a :class:`~lightning_taylor_prune.latency.table.LatencyTable`. Without
            one, a target of ``latency``, ``rank_by="score_per_ms"`` and ``round_to="auto"`` have the first rank measure
            it in the first batch, which takes up to two minutes once: it is kept on disk and in checkpoints. A dict of
            options of its ``measure`` says how: ``{"max_seconds": 20}``.
        stop_if: Validation metrics that pruning must not spoil, such as ``{"val_acc": {"drop": 0.02}}``: by name or
            shell pattern, with ``drop`` (largest loss against the unpruned network) or ``class_drop`` (of the worst one
            that a pattern names), ``below`` or ``above`` (worst value), ``mode`` (``"max"``, or ``"min"`` for losses),
            and ``patience`` (failed validations in a row with which the last network that held all limits comes back,
            weights, shapes and optimizer state, and training goes on without pruning; 1 by default). The value of the
            unpruned network is that of the last validation before the first prune; if there was none, the callback has
            the Trainer run one. The network is only pruned again once a validation has found that it holds the limits.
            Learning rate schedulers and the count of steps go on.

    Attributes:
        pruner, groups, history, filters_before, filters_after, stop_reason, stop_message: See
            :class:`~lightning_taylor_prune.callbacks.resume.ResumablePruning`.

    Raises:
        MisconfigurationException: An argument cannot be used.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[TaylorPruningCallback(every_n_steps=50, filters_per_prune=8)], logger=False)
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        filters_per_prune: int | None = None,
        max_prunes: int | None = 30,
        start_step: int = 0,
        target: str | None = None,
        criterion: str = "taylor",
        optimizer_state: OptimizerStateMode = "reset",
        min_channels: int = 1,
        max_pruning_ratio: float | Mapping[Layers, float] = 0.9,
        round_to: int | Literal["auto"] = 1,
        exclude: Sequence[Layers] = (),
        validate_after_prune: bool = True,
        stop_at: Mapping[str, float | int] | None = None,
        normalize: str | None = None,
        macs_weight: float = 0.0,
        rewrite_hard_coded: bool = False,
        on_unprunable: OnUnprunable = "warn",
        copies: Sequence[Any] = (),
        rank_timeout: float = 600.0,
        schedule: Schedule = "linear",
        rank_by: RankBy | None = None,
        include: Sequence[Layers] | None = None,
        latency: Latency | Mapping[str, Any] | None = None,
        stop_if: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        with as_misconfiguration():
            limits = Constraints(min_channels, max_pruning_ratio, round_to, exclude, stop_at, include, latency)
            budget = Budget(filters_per_prune, max_prunes, schedule)
            how = (criterion, optimizer_state, normalize, macs_weight, rewrite_hard_coded)
            settings = Settings(*how, limits, budget, rank_by)
            check_int("every_n_steps", every_n_steps, at_least=1)
            check_int("start_step", start_step, at_least=0)
            check_bool("validate_after_prune", validate_after_prune)
            check_choice("on_unprunable", on_unprunable, get_args(OnUnprunable))
            check_copies(copies)
            check_number("rank_timeout", rank_timeout, at_least=0)
            metrics = metric_limits(stop_if)
        super().__init__(target, copies, metrics)
        self.every_n_steps, self.start_step = every_n_steps, start_step
        self.filters_per_prune, self.max_prunes = filters_per_prune, max_prunes
        self.validate_after_prune, self.on_unprunable = validate_after_prune, on_unprunable
        self.settings, self.rank_timeout = settings, rank_timeout

    @property
    def state_key(self) -> str:
        """Two callbacks on two targets keep their states apart in a checkpoint."""
        return self._generate_state_key(target=self.target)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work before any data is read."""
        if stage == "fit":
            with as_misconfiguration():
                check_strategy(trainer.strategy)
                check_target(pl_module, self.target)
            refuse_overlap(self, trainer, pl_module)
            self._ranks = Ranks(self.state_key, self.rank_timeout)
            if self._module is not pl_module:
                self._forget()
                self._module = pl_module
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the step count of a training that goes on."""
        self._seen_step, self._scored_step = trainer.global_step, -1
        self._copies.begin(trainer, pl_module)
        if not self._resumed:
            self._intervals = self._intervals_at(trainer.global_step)
            if self.pruner is not None and self.stop_reason is None:  # a second `fit`
                self._reopen(pl_module)
            return
        if has_other(self._resumed, self, "schedule") or has_other(self._resumed, self, "limits"):
            self._intervals = self._intervals_at(trainer.global_step)
        if self.pruner is None and (calls := calls_of_checkpoint(self._resumed, pl_module)) is not None:
            self._begin(pl_module, calls)
        if self.stop_reason is not None:
            self._close()
        else:
            self._stop_after_last()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Record how the first batch calls the network."""
        self._validation.withdraw(trainer)
        self._settle(trainer, pl_module, batch)
        if self.stop_reason is None and not self.history:
            self._first_batch.begin(pl_module, batch, batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """End recording the forward pass."""
        self._first_batch.end_forward()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in the gradients of one optimizer step, once they are complete."""
        if self.stop_reason is not None or not pl_module.automatic_optimization:
            return
        if trainer.fit_loop._should_accumulate():
            return
        if self._scored_step == trainer.global_step:  # a closure that is evaluated again (L-BFGS)
            if self.pruner is not None:
                self.pruner.discard()
            return
        self._begin_if_new(pl_module)
        if self.stop_reason is not None:
            return
        self._scored_step = trainer.global_step
        self._accumulate(trainer, gradient_scale(trainer) * window_correction(trainer))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Take in gradients under manual optimization: only here are those of one optimizer known to be complete."""
        if self.stop_reason is not None or pl_module.automatic_optimization or self.pruner is None:
            return
        parameters = parameters_of_step(trainer, pl_module, optimizer)
        # The precision plugin has unscaled `.grad` by now, but not what hooks saw in the backward pass.
        self._accumulate(trainer, gradient_scale(trainer) if self.pruner.criterion.sees_backward else 1.0, parameters)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prune if an interval of optimizer steps is complete."""
        self._first_batch.end_forward()
        if trainer.global_step != self._seen_step:  # else the same step again: inside an accumulation window
            self._seen_step = trainer.global_step
            self._end_step(trainer, pl_module)
        self._note_validation(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the Trainer its own validation schedule back."""
        self._validation.withdraw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what has become of every layer."""
        self._validation.withdraw(trainer)
        self._end_training(trainer, pl_module)
        self._close()
        self._structure = structure_of(pl_module)
        if self.pruner is not None and self.history:
            rank_zero_info(filters_table(self.filters_before, self.filters_after, self.pruner.groups.params))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._close()
        self._structure = structure_of(pl_module)
