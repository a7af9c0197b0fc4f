"""Scores of different groups are made comparable."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_taylor_prune.criteria.normalize import normalize_scores, unit_macs
from lightning_taylor_prune.groups.groups import ChannelGroups
from tests.criteria.measured import build, per_group


@cache
def sequential_groups() -> ChannelGroups:
    return build("sequential")[2]


scores_of_24_units = st.lists(st.floats(1e-6, 1e6), min_size=24, max_size=24).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


normalizations = st.sampled_from(["mean", "l2", "max"])


@given(scores_of_24_units, normalizations, st.floats(1e-3, 1e3))
def test_normalized_scores_do_not_depend_on_a_groups_scale(scores: Tensor, how: str, factor: float) -> None:
    scaled = torch.cat([scores[:10] * factor, scores[10:]])
    groups = sequential_groups()
    torch.testing.assert_close(normalize_scores(scaled, groups, how), normalize_scores(scores, groups, how))


@given(scores_of_24_units, normalizations)
def test_normalization_keeps_the_order_within_a_group(scores: Tensor, how: str) -> None:
    normalized = per_group(sequential_groups(), normalize_scores(scores, sequential_groups(), how))
    for name, part in per_group(sequential_groups(), scores).items():
        assert (normalized[name][part.argsort()].diff() >= 0).all()


@given(scores_of_24_units, normalizations, st.integers(0, 23), st.sampled_from([torch.nan, torch.inf]))
def test_units_without_finite_score_do_not_touch_the_others(scores: Tensor, how: str, unit: int, bad: float) -> None:
    groups, others = sequential_groups(), torch.arange(24) != unit
    spoilt = torch.where(others, scores, bad)
    normalized = normalize_scores(spoilt, groups, how)
    assert normalized[others].isfinite().all() and not normalized[unit].isfinite()


@pytest.mark.parametrize("how", ["none", "mean", "l2", "max"])
def test_zero_scores_stay_zero(how: str) -> None:
    assert normalize_scores(torch.zeros(24), sequential_groups(), how).eq(0).all()


def test_unknown_normalization_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="must be one of none, mean, l2, max, but got 'sum'"):
        normalize_scores(torch.zeros(24), sequential_groups(), "sum")


def test_macs_are_taken_off_in_proportion() -> None:
    groups = sequential_groups()
    for number, group in enumerate(groups):
        left = groups.after(groups.plan({group.name: [2]})).macs
        assert unit_macs(groups)[group.first_unit] == groups.macs - left, number
    shares = unit_macs(groups) / groups.macs
    torch.testing.assert_close(normalize_scores(torch.ones(24).double(), groups, "none", 0.5), 1 - 0.5 * shares)
