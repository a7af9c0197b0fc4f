"""A trial cut, and a contradiction between what is predicted for it and what the network's code does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from lightning_taylor_prune.groups.changes import SizeRule
from lightning_taylor_prune.groups.divergence import Divergence
from lightning_taylor_prune.groups.dry_run import PreparedDryRun
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.shapes import KeepMask
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.plan import PruningPlan
from lightning_taylor_prune.tracing.isolation import Snapshot


@dataclass(frozen=True)
class Trial:
    """A cut with which the network's code is run, to see whether it does what is predicted.

    Attributes:
        root: The network.
        groups: Its groups, with what is known so far of its code.
        plan: What is removed.
        snapshot: The network as it is now, if someone has taken one: that takes longer than many a dry run.
    """

    root: nn.Module
    groups: ChannelGroups
    plan: PruningPlan
    snapshot: Snapshot | None = None

    @property
    def structure(self) -> Structure:
        """Every size in the network."""
        return self.groups.structure

    @cached_property
    def kept(self) -> KeepMask:
        """Which labels are kept after the cut."""
        return self.groups.kept_after(self.plan)

    @cached_property
    def counts(self) -> Sequence[int]:
        """Every registered count after the cut."""
        return self.structure.counts(self.kept)

    def value(self, rule: SizeRule) -> int | None:
        """Return what the cut sets a rule's integer to."""
        return rule.value(self.structure, self.counts)

    def run(self, rules: Sequence[SizeRule] = (), afresh: bool = False) -> Divergence | None:
        """Verify the cut, with further integers made to follow sizes.

        Args:
            rules: The integers.
            afresh: Run the code even where the outcome is known already.
        """
        return self._prepared.check(self.groups.analysis.changes.with_rules(rules), afresh)

    def once_more(self) -> Trial:
        """Return the same trial of the network as it is now; one that has run must not run on a changed network."""
        return replace(self, snapshot=None)

    @cached_property
    def _prepared(self) -> PreparedDryRun:
        dry_run, snapshot = self.groups.analysis.dry_run, self.snapshot
        return dry_run.prepare(self.root, self.structure, self.kept, self.plan.cuts, snapshot)


@dataclass(frozen=True)
class Contradiction:
    """A trial cut that the network's code contradicts."""

    trial: Trial
    divergence: Divergence
