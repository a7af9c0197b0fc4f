"""What each group lost, and what its scores said."""

from __future__ import annotations

import pytest

from lightning_taylor_prune.report import GroupResult
from lightning_taylor_prune.report.scores import GroupLoss, group_losses, why

GROUPS = (GroupResult("a", ("a",), 10, 9), GroupResult("b", ("b", "c"), 4, 1))


def row(rank: float | None, removed: float | None) -> dict:
    scores = {"removed": 1, "removed_score": removed, "kept_score": 0.5, "rank": rank}
    return {"scores": {"a": scores, "b": {**scores, "rank": 0.9}}}


def test_largest_share_comes_first() -> None:
    assert [(loss.name, loss.fraction) for loss in group_losses(GROUPS, [])] == [("b", 0.75), ("a", 0.1)]


def test_rank_is_that_of_the_first_and_the_last_prune() -> None:
    losses = group_losses(GROUPS, [row(0.1, 0.1), row(0.2, None), row(0.3, 0.3)])
    assert (losses[1].first_rank, losses[1].last_rank) == (0.1, 0.3)


def test_ratio_is_the_median_over_prunes_that_took_some() -> None:
    losses = group_losses(GROUPS, [row(0.1, 0.1), row(0.2, None), row(0.3, 0.3)])
    assert losses[1].ratio == pytest.approx(0.4)


def test_history_without_scores_leaves_them_open() -> None:
    loss = group_losses(GROUPS, [{"step": 1}])[0]
    assert (loss.first_rank, loss.last_rank, loss.ratio) == (None, None, None)


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (
            GroupLoss("a", ("a",), 64, 23, 0.1, 0.5),
            "lost 41 of 64 units (64 %). At the first prune its median unit scored higher than only 10 % of all units.",
        ),
        (
            GroupLoss("a", ("a",), 64, 64, 0.9, 0.9),
            "kept all its 64 units. At the first prune its median unit scored higher than 90 % of all units.",
        ),
        (GroupLoss("a", ("a", "b"), 4, 3, None, None), "lost 1 of 4 units (25 %), each of which 2 layers share."),
        (GroupLoss("a", ("a",), 1, 1, None, None), "kept its only unit."),
    ],
    ids=["lost", "kept", "shared", "single"],
)
def test_sentences(loss: GroupLoss, sentence: str) -> None:
    assert why(loss).replace("\N{NO-BREAK SPACE}", " ") == sentence
