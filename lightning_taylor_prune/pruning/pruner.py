"""Accumulate scores, choose, verify, agree and cut: pruning in any training loop."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from lightning_taylor_prune.criteria.normalize import normalize_scores, without_groups
from lightning_taylor_prune.errors import TraceError
from lightning_taylor_prune.groups.divergence import Divergence
from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.plan import PruningPlan
from lightning_taylor_prune.pruning.beside import Beside, inside_and_beside
from lightning_taylor_prune.pruning.bookkeeping import Bookkeeping
from lightning_taylor_prune.pruning.budget import Budget, Schedule, Share
from lightning_taylor_prune.pruning.constraints import Constraints, check_int, check_number
from lightning_taylor_prune.pruning.costs import Latency
from lightning_taylor_prune.pruning.layers import Layers, ratios_of_groups, without_leave
from lightning_taylor_prune.pruning.measured import with_latency
from lightning_taylor_prune.pruning.optimizer_state import OptimizerStateMode
from lightning_taylor_prune.pruning.original import OriginalNetwork
from lightning_taylor_prune.pruning.outcome import PruneOutcome
from lightning_taylor_prune.pruning.progress import PruningProgress
from lightning_taylor_prune.pruning.prune import cut_tensors_, refuse_wrappers
from lightning_taylor_prune.pruning.rank_by import RankBy, rank_scores
from lightning_taylor_prune.pruning.ranks import Ranks
from lightning_taylor_prune.pruning.reach import check_targets
from lightning_taylor_prune.pruning.select import Choice, choose
from lightning_taylor_prune.pruning.settings import Settings
from lightning_taylor_prune.pruning.trained import TrainedParameters
from lightning_taylor_prune.pruning.transaction import Assignment, Step
from lightning_taylor_prune.pruning.twins import TwinWatch
from lightning_taylor_prune.tracing.call import batch_size


class Pruner(PruningProgress):
    """Prunes a network while any training loop trains it.

    Call :meth:`update` after every backward pass, and :meth:`prune` whenever filters are to be removed. Under
    ``torch.distributed`` all ranks call both; they agree before they cut, and the loop then wraps the network in
    ``DistributedDataParallel`` anew.

    Args:
        model: The network itself, not a wrapper around it.
        example_inputs: A tensor, or a tuple of positional arguments, as the network is called in training.
        example_kwargs: Keyword arguments.
        criterion: ``"taylor"``, ``"taylor_examples"``, ``"taylor_gate"``, ``"taylor_weight"``,
            ``"taylor_activation"``, ``"magnitude"``, ``"random"``, or any registered name.
        optimizers: The optimizers that hold the network's parameters.
        optimizer_state: ``"reset"`` clears the state of all parameters at each prune; ``"slice"`` keeps that of the
            channels that are kept.
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
        stop_at: Costs to reach and never to undercut, such as ``{"params": 0.45}``; see
            :func:`~lightning_taylor_prune.pruning.select.select`.
        max_prunes: Prunes over which the way to ``stop_at`` is spread, where :meth:`prune` is not told how many units.
        schedule: How it is spread: ``"linear"``, ``"cubic"``, or a function from [0, 1] to [0, 1].
        rank_by: What units are compared by, see :func:`~lightning_taylor_prune.pruning.rank_by.rank_scores`.
        latency: Tells latencies; as in :func:`~lightning_taylor_prune.pruning.select.select`.
        normalize: How scores are divided within each group; by default what suits the criterion.
        macs_weight: Preference for units that cost many MACs.
        rewrite_hard_coded: As in :func:`~lightning_taylor_prune.groups.find.find_groups`.
        rank_timeout: Seconds to wait at a prune for the other ranks of a job.

    Attributes:
        groups: The groups of the network as it is now.
        history: One dict for each prune: ``step``, ``count`` and what
            :func:`~lightning_taylor_prune.pruning.outcome.history_row` says.
        criterion: The criterion, with what it has accumulated since the last prune.
        refused: Names of groups that are no longer pruned, as the network's code contradicted a plan.
        batch_size: Examples in the call that was analysed.
        optimizers: May be replaced where a loop builds new ones.
        twins: Knows which modules have followed others since the training began.

    Raises:
        ArgumentError: An argument cannot be used.
        TraceError: The network cannot be traced.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> pruner = Pruner(net, torch.zeros(4, 1, 8, 8), optimizers=[optimizer])
        >>> for step in range(6):
        ...     loss = net(torch.randn(4, 1, 8, 8)).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     pruner.update()
        ...     optimizer.step()
        ...     if step % 3 == 2:
        ...         outcome = pruner.prune(filters=2)
        >>> net[0].out_channels, len(pruner.history)
        (4, 2)
    """

    optimizers: Sequence[object] | object = ()

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        example_kwargs: Mapping[str, Any] | None = None,
        *,
        criterion: str = "taylor",
        optimizers: Sequence[object] | object = (),
        optimizer_state: OptimizerStateMode = "reset",
        min_channels: int = 1,
        max_pruning_ratio: float | Mapping[Layers, float] = 0.9,
        round_to: int | Literal["auto"] = 1,
        exclude: Collection[Layers] = (),
        include: Collection[Layers] | None = None,
        stop_at: Mapping[str, float] | None = None,
        max_prunes: int | None = None,
        schedule: Schedule = "linear",
        rank_by: RankBy | None = None,
        latency: Latency | Mapping[str, Any] | None = None,
        normalize: str | None = None,
        macs_weight: float = 0.0,
        rewrite_hard_coded: bool = False,
        rank_timeout: float = 600.0,
    ) -> None:
        limits = Constraints(min_channels, max_pruning_ratio, round_to, exclude, stop_at, include, latency)
        budget = Budget(None, max_prunes, schedule)
        settings = Settings(
            criterion, optimizer_state, normalize, macs_weight, rewrite_hard_coded, limits, budget, rank_by
        )
        check_number("rank_timeout", rank_timeout, at_least=0)
        refuse_wrappers(model)
        groups = find_groups(model, example_inputs, example_kwargs, rewrite_hard_coded=rewrite_hard_coded)
        ranks = Ranks(f"Pruner, {criterion}", rank_timeout)
        settings = replace(settings, constraints=with_latency(limits, rank_by, groups, ranks))
        check_targets(groups, settings.constraints)
        self._begin(model, settings, groups, OriginalNetwork.of(model, groups), ranks)
        self.optimizers = optimizers

    @classmethod
    def of_groups(
        cls, model: nn.Module, settings: Settings, groups: ChannelGroups, original: OriginalNetwork, ranks: Ranks
    ) -> Pruner:
        """Build a pruner for a network that has been analysed; its optimizers are set later."""
        pruner = cls.__new__(cls)
        pruner._begin(model, settings, groups, original, ranks)
        return pruner

    def _begin(
        self, model: nn.Module, settings: Settings, groups: ChannelGroups, original: OriginalNetwork, ranks: Ranks
    ) -> None:
        without_leave(groups, settings.constraints)
        ratios_of_groups(groups, settings.constraints.max_pruning_ratio)
        self.model, self.settings, self.groups, self.ranks = model, settings, groups, ranks
        self.history: list[dict[str, Any]] = []
        self.refused: set[str] = set()
        self.original, self.twins, self._trained = original, TwinWatch(model), TrainedParameters()
        self.batch_size = batch_size(groups.calls[0])
        self._updates = self.attempts = 0
        self.criterion = self._new_criterion()

    @property
    def scores(self) -> Tensor:
        """Mean score of every unit since the last prune, float64 on the CPU, shape ``[groups.num_units]``.

        NaN for units without a score, and for those that no gradient reaches (a teacher's). Under
        ``torch.distributed`` all ranks must ask: some criteria add up what each of them saw.
        """
        return self._trained.without_frozen(self.criterion.compute(), self.model, self.groups)

    def update(self, scale: float | Tensor = 1.0, parameters: Collection[int] | None = None) -> None:
        """Take in the gradients of one minibatch, after its backward pass and before they are cleared.

        Args:
            scale: What gradients must be multiplied with to be those of the mean loss: with gradient scaling, one
                over the scale.
            parameters: Identities (``id``) of the parameters whose gradients are of this minibatch; by default all.
        """
        self._updates += 1
        if self.is_renamed:
            self.analyse_renamed()
        self._trained.note(self.model, parameters)
        self.criterion.update(scale, parameters)

    def discard(self) -> None:
        """Forget the backward passes since the last :meth:`update`: they are not to count."""
        self.criterion.discard()

    def close(self) -> None:
        """Remove the criterion's hooks from the network; scores so far are kept."""
        self.criterion.close()

    def reopen(self) -> None:
        """Place the criterion's hooks on the network again, after :meth:`close`."""
        self.restart_criterion(self.criterion.state_dict())

    def prune(
        self,
        filters: int | None = None,
        *,
        step: int | None = None,
        copies: Sequence[object] = (),
        holders: Sequence[object] = (),
        further_steps: Sequence[Step] = (),
    ) -> PruneOutcome:
        """Remove the least important units: choose, verify, agree with the other ranks, cut; all or nothing.

        Args:
            filters: Units to remove. A unit is mostly one filter; coupled filters (a residual stream's) count once. By
                default the next share of the way to ``stop_at``, if that and ``max_prunes`` are given; else 8.
            step: Number of the optimizer step, for the history; by default the number of updates.
            copies: What is cut along: copies of the network or of a submodule (moving averages) beside or in it,
                dictionaries from names to tensors, lists of tensors in the order of a module's parameters.
            holders: Objects that may hold the network's parameters, or optimizers of them, as attributes.
            further_steps: What else belongs to the cut, see :class:`~lightning_taylor_prune.pruning.transaction.Step`.
        """
        if filters is not None:
            check_int("filters", filters, at_least=1)
        attempt = Assignment(self, "attempts", self.attempts + 1)
        step = self._updates if step is None else step
        if not self.groups.num_units:
            return PruneOutcome(self.groups.plan({}), "nothing_left")
        try:
            inside, others = inside_and_beside(self.model, copies)
            self._settle_twins(inside, holders)
            beside = Beside.of(self.model, others, holders)
            outcome = self._prune(filters, step, beside, [*further_steps, attempt])
        except TraceError as error:
            self._warn(f"Step {step}: no prune, as the network cannot be traced as it is now. {error}")
            outcome = PruneOutcome(self.groups.plan({}), "untraceable")
        attempt.commit()  # also where nothing was cut
        return outcome

    def _prune(self, filters: int | None, step: int, beside: Beside, further_steps: Sequence[Step]) -> PruneOutcome:
        raw = self.scores
        if not raw.isfinite().any():
            seen = f"none of the {self.criterion.steps} minibatches since the last one had finite gradients"
            self._warn(f"Step {step}: no prune, as {seen}.")
            return PruneOutcome(self.groups.plan({}), "no_scores")
        self._trained.warn_unscored(raw, self.model, self.groups)
        choice = self._cut(self._comparable(raw), filters, step, beside, further_steps)
        return PruneOutcome(choice.plan, choice.reason)

    def _comparable(self, raw: Tensor) -> Tensor:
        """Return what units are compared by."""
        how, latency = self.settings, self.settings.constraints.latencies
        scores = normalize_scores(raw, self.groups, how.normalization, how.macs_weight)
        return rank_scores(scores, self.groups, how.rank_by, latency)

    def _cut(
        self, scores: Tensor, filters: int | None, step: int, beside: Beside, further_steps: Sequence[Step]
    ) -> Choice:
        """Cut; groups whose channels the network's code turns out not to give up are left out from then on."""
        while True:
            choice = self._choose(scores, filters)
            divergence = self.groups.verify(self.model, choice.plan) if choice.plan else None
            self.ranks.agree(choice.plan.digest() if divergence is None else divergence.message)
            if divergence is not None:
                if self._analysed_anew():
                    scores = self._comparable(self.scores)
                else:
                    self._refuse(choice.plan, divergence)
                continue
            if choice.plan:
                optimizers, mode = beside.with_optimizers(self.optimizers), self.settings.optimizer_state
                steps = [*further_steps, Bookkeeping(self, choice.plan, scores, step, self.batch_size)]
                cut_tensors_(self.model, choice.plan, optimizers, mode, beside.copies, beside.holders, steps)
            return choice

    def _choose(self, scores: Tensor, filters: int | None) -> Choice:
        """Choose on rank 0, for all: scores may differ in their last bits, and then so would the filters."""
        limits, budget = self.settings.constraints, self.settings.budget
        share = Share(filters) if filters is not None else budget.share(self.groups, limits, self.attempts + 1)
        allowed = without_groups(scores, self.groups, self.refused)
        own = choose(self.groups, allowed, share.wanted, limits, share.floors)
        removed, reason = self.ranks.from_first([dict(own.plan.removed), own.reason])
        return own if self.ranks.rank == 0 else Choice(self.groups.plan(removed), reason)

    def _refuse(self, plan: PruningPlan, divergence: Divergence) -> None:
        concerned = self.groups.groups_at(divergence) & set(plan.removed) or set(plan.removed)
        self.refused |= concerned
        self._warn(
            f"Skipped this prune: {divergence.message}. "
            f"These groups will no longer be pruned: {', '.join(sorted(concerned))}."
        )
