"""What is known of a network, whichever channels are removed later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_taylor_prune.groups.changes import CodeChanges
from lightning_taylor_prune.groups.dry_run import DryRun
from lightning_taylor_prune.groups.families import Family, find_families
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.tracing.call import Call


@dataclass(frozen=True, eq=False)
class Analysis:
    """The outcome of analysing a network.

    Attributes:
        structure: Every size in the network as a count of labels that are kept.
        families: The units that can be removed, sorted into groups.
        changes: What must change in modules, in addition to their tensors.
        dry_run: Runs the network's code at other shapes, and stores the results of operators.
        calls: How the network, or each of the submodules that are analysed in its place, is called.
    """

    structure: Structure
    families: tuple[Family, ...]
    changes: CodeChanges
    dry_run: DryRun
    calls: tuple[Call, ...]

    @staticmethod
    def of(structure: Structure, changes: CodeChanges, dry_run: DryRun, calls: Sequence[Call]) -> Analysis:
        """Find the families of a structure."""
        return Analysis(structure, find_families(structure), changes.that_fit(structure), dry_run, tuple(calls))
