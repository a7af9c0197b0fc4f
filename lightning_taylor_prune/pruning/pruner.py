"""Accumulate scores, choose, verify, agree and cut: pruning in any training loop."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_taylor_prune.criteria import CRITERIA, Criterion
from lightning_taylor_prune.criteria.normalize import normalize_scores, warn_unscored
from lightning_taylor_prune.errors import PruningWarning
from lightning_taylor_prune.groups.dry_run import Divergence
from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.plan import PruningPlan
from lightning_taylor_prune.pruning.constraints import Constraints, check_int, check_number
from lightning_taylor_prune.pruning.optimizer_state import OptimizerStateMode
from lightning_taylor_prune.pruning.original import OriginalNetwork
from lightning_taylor_prune.pruning.prune import cut_tensors_, refuse_wrappers
from lightning_taylor_prune.pruning.ranks import Ranks
from lightning_taylor_prune.pruning.select import Choice, choose, excluded_groups, highest_removed, score_summary
from lightning_taylor_prune.pruning.settings import Settings
from lightning_taylor_prune.pruning.transaction import Step
from lightning_taylor_prune.tracing.call import batch_size


@dataclass(frozen=True)
class PruneOutcome:
    """What a prune did, and why it removed no more.

    Attributes:
        plan: What was removed; empty where nothing was.
        reason: Why fewer units were removed than asked for: ``"target"`` (the next one would undercut ``stop_at``),
            ``"nothing_left"`` (no unit is left within the constraints), ``"no_scores"`` (no minibatch since the last
            prune had finite gradients); ``None`` if as many were removed as asked for.
    """

    plan: PruningPlan
    reason: Literal["target", "nothing_left", "no_scores"] | None

    def __bool__(self) -> bool:
        """Whether anything was removed."""
        return bool(self.plan)


class Pruner:
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
        max_pruning_ratio: Largest fraction of a group's channels that may be removed over the whole training.
        round_to: The channels that a group keeps are a multiple of this (8 suits tensor cores).
        exclude: Layers that keep all their filters: names, shell patterns, or names of modules that contain them.
        stop_at: Costs never to undercut, such as ``{"params": 0.45}``: ``params``, ``macs`` or ``filters``, as a
            fraction of the original network (a float up to 1) or absolute.
        normalize: How scores are divided within each group; by default what suits the criterion.
        macs_weight: Preference for units that cost many MACs.
        rewrite_hard_coded: As in :func:`~lightning_taylor_prune.groups.find.find_groups`.
        rank_timeout: Seconds to wait at a prune for the other ranks of a job.

    Attributes:
        groups: The groups of the network as it is now.
        history: One dict for each prune, with ``step``, ``count``, ``removed``, ``filters``, ``prunable_filters``,
            ``params``, ``macs`` (per example), ``score_threshold``, ``skipped_minibatches`` and ``scores``
            (:func:`~lightning_taylor_prune.pruning.select.score_summary`).
        refused: Names of groups that are no longer pruned, as the network's code contradicted a plan.
        optimizers: May be replaced where a loop builds new ones.

    Raises:
        ArgumentError: An argument cannot be used.
        TraceError: The network cannot be traced.

    Example:
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
        max_pruning_ratio: float = 0.9,
        round_to: int = 1,
        exclude: Collection[str] = (),
        stop_at: Mapping[str, float] | None = None,
        normalize: str | None = None,
        macs_weight: float = 0.0,
        rewrite_hard_coded: bool = False,
        rank_timeout: float = 600.0,
    ) -> None:
        constraints = Constraints(min_channels, max_pruning_ratio, round_to, exclude, stop_at)
        settings = Settings(criterion, optimizer_state, normalize, macs_weight, rewrite_hard_coded, constraints)
        check_number("rank_timeout", rank_timeout, at_least=0)
        refuse_wrappers(model)
        groups = find_groups(model, example_inputs, example_kwargs, rewrite_hard_coded=rewrite_hard_coded)
        ranks = Ranks(f"Pruner, {criterion}", rank_timeout)
        self._begin(model, settings, groups, OriginalNetwork.of(model, groups), ranks, optimizers)

    @classmethod
    def of_groups(
        cls, model: nn.Module, settings: Settings, groups: ChannelGroups, original: OriginalNetwork, ranks: Ranks
    ) -> Pruner:
        """Build a pruner for a network that has been analysed; its optimizers are set later."""
        pruner = cls.__new__(cls)
        pruner._begin(model, settings, groups, original, ranks, ())
        return pruner

    def _begin(
        self,
        model: nn.Module,
        settings: Settings,
        groups: ChannelGroups,
        original: OriginalNetwork,
        ranks: Ranks,
        optimizers: Sequence[object] | object,
    ) -> None:
        excluded_groups(groups, settings.constraints.exclude)
        self.model, self.settings, self.groups, self.ranks = model, settings, groups, ranks
        self.optimizers = optimizers
        self.history: list[dict[str, Any]] = []
        self.refused: set[str] = set()
        self.original = original
        self._batch_size = batch_size(groups.calls[0])
        self._updates = 0
        self._scores = self._new_scores()

    def _new_scores(self) -> Criterion:
        return CRITERIA[self.settings.criterion](self.model, self.groups)

    # --- scores -------------------------------------------------------------------------------------------------

    @property
    def scores(self) -> Tensor:
        """Mean score of every unit since the last prune, float64 on the CPU, shape ``[groups.num_units]``.

        NaN for units without a score. Under ``torch.distributed`` all ranks must ask: some criteria add up what each
        of them saw.
        """
        return self._scores.compute()

    @property
    def minibatches(self) -> int:
        """Number of minibatches since the last prune."""
        return self._scores.steps

    @property
    def skipped_minibatches(self) -> int:
        """Number of those that were left out because of NaN or infinity."""
        return self._scores.skipped

    @property
    def sees_backward(self) -> bool:
        """Whether the criterion takes in gradients by hooks during the backward pass, where fp16 scales them."""
        return self._scores.sees_backward

    def update(self, scale: float | Tensor = 1.0, parameters: Collection[int] | None = None) -> None:
        """Take in the gradients of one minibatch, after its backward pass and before they are cleared.

        Args:
            scale: What gradients must be multiplied with to be those of the mean loss: with gradient scaling, one
                over the scale.
            parameters: Identities (``id``) of the parameters whose gradients are of this minibatch; by default all.
        """
        self._updates += 1
        self._scores.update(scale, parameters)

    def discard(self) -> None:
        """Forget the backward passes since the last :meth:`update`: they are not to count."""
        self._scores.discard()

    def close(self) -> None:
        """Remove the criterion's hooks from the network; scores so far are kept."""
        self._scores.close()

    def reopen(self) -> None:
        """Place the criterion's hooks on the network again, after :meth:`close`."""
        so_far = self._scores.state_dict()
        self._restart_scores()
        self._scores.load_state_dict(so_far)

    def _restart_scores(self) -> None:
        self._scores.close()
        self._scores = self._new_scores()

    # --- pruning ------------------------------------------------------------------------------------------------

    def prune(
        self,
        filters: int = 8,
        *,
        step: int | None = None,
        copies: Sequence[nn.Module] = (),
        further_steps: Sequence[Step] = (),
    ) -> PruneOutcome:
        """Remove the least important units: choose, verify, agree with the other ranks, cut; all or nothing.

        Args:
            filters: Units to remove. A unit is mostly one filter; coupled filters (a residual stream's) count once.
            step: Number of the optimizer step, for the history; by default the number of updates.
            copies: Networks of the same structure (moving averages) that are cut along.
            further_steps: What else belongs to the cut, see :class:`~lightning_taylor_prune.pruning.transaction.Step`.

        Returns:
            What was removed, and why no more.
        """
        check_int("filters", filters, at_least=1)
        step = self._updates if step is None else step
        raw = self.scores
        if not raw.isfinite().any():
            self._warn(
                f"Step {step}: no prune, as none of the {self.minibatches} minibatches since the last one had finite "
                "gradients for the pruned network."
            )
            return PruneOutcome(self.groups.plan({}), "no_scores")
        skipped = self.skipped_minibatches
        warn_unscored(raw, self.groups)
        settings = self.settings
        scores = normalize_scores(raw, self.groups, settings.normalization, settings.macs_weight)
        before = self.groups
        choice = self._cut(scores, filters, copies, further_steps)
        if choice.plan:
            self._restart_scores()
            self.history.append(self._row(step, choice.plan, before, scores, skipped))
        return PruneOutcome(choice.plan, choice.reason)

    def _cut(self, scores: Tensor, filters: int, copies: Sequence[nn.Module], further_steps: Sequence[Step]) -> Choice:
        """Cut; groups whose channels the network's code turns out not to give up are left out from then on."""
        while True:
            choice = self._choose(scores, filters)
            divergence = self.groups.verify(self.model, choice.plan) if choice.plan else None
            self.ranks.agree(choice.plan.digest() if divergence is None else divergence.message)
            if divergence is not None:
                if not self._analysed_anew():
                    self._refuse(choice.plan, divergence)
                continue
            if choice.plan:
                mode = self.settings.optimizer_state
                cut_tensors_(self.model, choice.plan, self.optimizers, mode, copies, further_steps)
                self.groups = self.groups.after(choice.plan)
                forget_compiled(self.model)
            return choice

    def _choose(self, scores: Tensor, filters: int) -> Choice:
        """Choose on rank 0, for all: scores may differ in their last bits, and then so would the filters."""
        own = choose(self.groups, self._without_refused(scores), filters, self.settings.constraints)
        removed, reason = self.ranks.from_first([dict(own.plan.removed), own.reason])
        return own if self.ranks.rank == 0 else Choice(self.groups.plan(removed), reason)

    def _without_refused(self, scores: Tensor) -> Tensor:
        """Return scores with NaN, which is never chosen, for all units of refused groups."""
        usable = scores.clone()
        for group in self.groups:
            if group.name in self.refused:
                usable[group.first_unit : group.first_unit + group.num_channels] = math.nan
        return usable

    def _analysed_anew(self) -> bool:
        """Analyse again if the network does other things than it did, uncut (a hook was added); say whether it was."""
        if self.groups.verify(self.model, self.groups.plan({})) is None:
            return False
        kept = self.groups.kept_units()
        found = self.original.find_groups(self.model, self.groups.calls, self.settings.rewrite_hard_coded)
        self.groups = found.restricted(kept)
        self._warn("The network does other things than when it was analysed first, and was analysed again.")
        return True

    def _refuse(self, plan: PruningPlan, divergence: Divergence) -> None:
        concerned = self.groups.groups_at(divergence) & set(plan.removed) or set(plan.removed)
        self.refused |= concerned
        self._warn(
            f"Skipped this choice: {divergence.message}. These groups will no longer be pruned: "
            f"{', '.join(sorted(concerned))}."
        )

    def _row(self, step: int, plan: PruningPlan, before: ChannelGroups, scores: Tensor, skipped: int) -> dict[str, Any]:
        """Return what the history notes of a prune."""
        return {
            "step": step,
            "count": len(self.history) + 1,
            "removed": len(plan),
            "filters": self.groups.num_filters,
            "prunable_filters": self.groups.num_prunable_filters,
            "params": self.groups.params,
            "macs": self.groups.macs // self._batch_size,
            "score_threshold": highest_removed(plan, before, scores),
            "skipped_minibatches": skipped,
            "scores": score_summary(plan, before, scores),
            "metrics": {},
        }

    def _warn(self, message: str) -> None:
        if self.ranks.rank == 0:
            warnings.warn(message, PruningWarning, stacklevel=4)

    # --- checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return where pruning stands, as plain data and tensors."""
        return {
            "history": copy.deepcopy(self.history),
            "refused": sorted(self.refused),
            "updates": self._updates,
            "kept": {name: torch.from_numpy(units.copy()) for name, units in self.groups.kept_units().items()},
            "original": self.original.state_dict(),
            "scores": self._scores.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint left off; the network takes the checkpoint's shapes.

        Build the network as its code builds it, unpruned, then the pruner, then load the pruner's state; the
        network's and the optimizers' own states fit after that.

        Raises:
            PlanError: The state is one of another network.
        """
        restricted = self.groups.unpruned().restricted(state["kept"])
        kept = restricted.kept_units()
        now = self.groups.kept_units()
        removed = {name: [i for i, unit in enumerate(now[name]) if unit not in set(kept[name])] for name in now}
        plan = self.groups.plan(removed)
        if plan:
            cut_tensors_(self.model, plan, self.optimizers, self.settings.optimizer_state)
        self.groups = restricted
        self.load_progress(state)

    def load_progress(self, state: Mapping[str, Any]) -> None:
        """Take up history and scores of a checkpoint, for a network that has the checkpoint's shapes already."""
        self.history = copy.deepcopy(state["history"])
        self.refused = set(state["refused"])
        self._updates = state["updates"]
        self.original = OriginalNetwork.from_state_dict(state["original"])
        self._restart_scores()
        self._scores.load_state_dict(state["scores"])


def forget_compiled(model: nn.Module) -> None:
    """Have compiled networks compiled anew after a cut: each would soon reach dynamo's limit on recompilations."""
    compiled = any(type(module).__name__ == "OptimizedModule" for module in model.modules())
    if compiled or getattr(model, "_compiler_ctx", None) is not None:
        torch._dynamo.reset()
