"""Which groups lost most, and why: what the scores said. Pure functions of the history."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_taylor_prune.report.results import GroupResult
from lightning_taylor_prune.report.words import percent, plural


@dataclass(frozen=True)
class GroupLoss:
    """What a group lost, and how its scores ranked.

    Attributes:
        name: Name of the group.
        layers: The layers that write it.
        before: Units of the original network.
        after: Units of the pruned network.
        first_rank: Share of all units with a lower score than the group's median unit at the first prune, 0 to 1;
            ``None`` if it is not known.
        last_rank: The same at the last prune.
        ratio: Median score of the removed units divided by that of the kept ones: the median over all prunes that
            removed some; ``None`` if there was none.
    """

    name: str
    layers: tuple[str, ...]
    before: int
    after: int
    first_rank: float | None
    last_rank: float | None
    ratio: float | None = None

    @property
    def lost(self) -> int:
        """Number of removed units."""
        return self.before - self.after

    @property
    def fraction(self) -> float:
        """Share of the group's units that were removed, 0 to 1."""
        return self.lost / self.before if self.before else 0.0


def group_losses(groups: Iterable[GroupResult], history: Sequence[Mapping[str, Any]]) -> list[GroupLoss]:
    """Return what each group lost, largest share first.

    Args:
        groups: The groups.
        history: Rows of the callback's history; their ``scores`` come from
            :func:`~lightning_taylor_prune.pruning.select.score_summary`. Prunes that were taken back do not count.
    """
    scored = [row["scores"] for row in history if row.get("scores") and not row.get("taken_back")]
    first, last = (scored[0], scored[-1]) if scored else ({}, {})
    losses = [
        GroupLoss(
            g.name,
            g.layers,
            g.units_before,
            g.units_after,
            _rank(first, g.name),
            _rank(last, g.name),
            _ratio(scored, g.name),
        )
        for g in groups
    ]
    return sorted(losses, key=lambda loss: -loss.fraction)


def _rank(scores: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    return scores.get(name, {}).get("rank")


def _ratio(scored: Sequence[Mapping[str, Mapping[str, Any]]], name: str) -> float | None:
    pairs = [(row[name]["removed_score"], row[name]["kept_score"]) for row in scored if name in row]
    ratios = [removed / kept for removed, kept in pairs if removed is not None and kept is not None and kept > 0]
    return statistics.median(ratios) if ratios else None


def why(loss: GroupLoss) -> str:
    """Say in one sentence what a group lost and what its scores have to do with it."""
    amount = (
        f"lost {loss.lost:,} of {plural(loss.before, 'unit')} ({percent(loss.fraction, 0)})"
        if loss.lost
        else f"kept {'its only unit' if loss.before == 1 else f'all its {loss.before:,} units'}"
    )
    shared = f", each of which {len(loss.layers)} layers share" if len(loss.layers) > 1 else ""
    if loss.first_rank is None:
        return f"{amount}{shared}."
    return f"{amount}{shared}. {_rank_words(loss.first_rank)}"


def _rank_words(rank: float) -> str:
    only = "only " if rank < 0.5 else ""
    return f"At the first prune its median unit scored higher than {only}{percent(rank, 0)} of all units."
