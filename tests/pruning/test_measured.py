"""Latencies that arguments ask for are measured where nobody hands them in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_taylor_prune import ChannelGroups, LatencyTable, select
from lightning_taylor_prune.pruning.constraints import Constraints
from lightning_taylor_prune.pruning.measured import needs_latency, with_latency
from tests.latency.clocks import macs, measured, wide

GROUPS = wide()
TABLE = measured(GROUPS, macs)


FAKE: dict[str, Any] = {"cache_dir": False, "progress": False, "time_part": macs, "max_seconds": 5}


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[ChannelGroups]:
    """What is measured from now on; a fake clock takes the place of the device."""
    seen: list[ChannelGroups] = []
    measure = LatencyTable.measure

    def measure_by_fake_clock(groups: ChannelGroups) -> LatencyTable:
        seen.append(groups)
        return measure(groups, **FAKE)

    monkeypatch.setattr(LatencyTable, "measure", measure_by_fake_clock)
    return seen


@pytest.mark.parametrize(
    ("limits", "rank_by", "needs"),
    [
        (Constraints(), None, False),
        (Constraints(stop_at={"params": 0.5}), "score_per_mac", False),
        (Constraints(stop_at={"latency": 0.5}), None, True),
        (Constraints(round_to="auto"), None, True),
        (Constraints(), "score_per_ms", True),
    ],
    ids=["nothing", "other costs", "target", "round_to", "rank_by"],
)
def test_only_what_asks_for_latencies_has_them_measured(limits: Constraints, rank_by: Any, needs: bool) -> None:
    assert needs_latency(limits, rank_by) == needs


def test_a_choice_by_latency_measures_once(measurements: list[ChannelGroups]) -> None:
    select(GROUPS, torch.rand(GROUPS.num_units), 4, rank_by="score_per_ms", stop_at={"latency": 0.5})
    assert measurements == [GROUPS]


def test_what_is_known_is_not_measured_again(measurements: list[ChannelGroups]) -> None:
    limits = with_latency(Constraints(round_to="auto"), None, GROUPS, known=TABLE.to_json())
    assert limits.latency is not None and limits.latency.latency(GROUPS) == TABLE.latency(GROUPS) and not measurements


class SecondRank:
    """A rank that is told what the first one has measured."""

    rank = 1

    def from_first(self, message: Any) -> str:
        assert message is None
        return TABLE.to_json()


def test_other_ranks_take_the_table_of_the_first(measurements: list[ChannelGroups]) -> None:
    limits = with_latency(Constraints(round_to="auto"), None, GROUPS, SecondRank())  # type: ignore[arg-type]
    assert limits.latency is not None and not measurements
