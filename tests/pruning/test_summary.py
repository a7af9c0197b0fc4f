"""Why a plan takes what it takes."""

from __future__ import annotations

import pytest
import torch

from lightning_taylor_prune import select
from lightning_taylor_prune.pruning.summary import highest_removed, score_summary
from tests.pruning.test_select import GROUPS


def test_highest_removed_score() -> None:
    scores = torch.arange(20.0)
    assert highest_removed(select(GROUPS, scores, 4), GROUPS, scores) == 3.0


def test_summary_tells_median_scores_and_standing_of_each_group() -> None:
    scores = torch.cat([torch.arange(6.0), torch.arange(10.0, 20.0), torch.full((4,), torch.nan)])
    summary = score_summary(GROUPS.plan({"0": [0, 1]}), GROUPS, scores)
    assert summary == {
        "0": {"removed": 2, "removed_score": 0.5, "kept_score": 3.5, "rank": pytest.approx(2.5 / 15)},
        "2": {"removed": 0, "removed_score": None, "kept_score": 14.5, "rank": pytest.approx(10.5 / 15)},
        "4": {"removed": 0, "removed_score": None, "kept_score": None, "rank": None},
    }
