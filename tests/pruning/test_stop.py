"""Why pruning ended, in checkpoints of this and of earlier versions."""

from __future__ import annotations

import pytest

from lightning_taylor_prune import StopReason
from lightning_taylor_prune.pruning.stop import stop_as_data, stop_of_data


@pytest.mark.parametrize("reason", StopReason)
def test_reason_and_sentence_survive_a_checkpoint(reason: StopReason) -> None:
    state = stop_as_data(reason, "so it is")
    assert stop_of_data(state) == (reason, "so it is") and type(state["stop_reason"]) is str


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("the next filter would undercut the target {'params': 0.45}", StopReason.TARGET),
        ("nothing is left to prune within `min_channels`, `max_pruning_ratio` and `exclude`", StopReason.NOTHING_LEFT),
        ("all 30 prunes are done", StopReason.MAX_PRUNES),
        ("nothing can be pruned: every channel is locked", StopReason.UNPRUNABLE),
        ("the moon is full", StopReason.OTHER),
    ],
    ids=str,
)
def test_sentence_of_an_earlier_version_is_understood(sentence: str, reason: StopReason) -> None:
    assert stop_of_data({"stop_reason": sentence}) == (reason, sentence)


def test_pruning_that_goes_on_has_neither() -> None:
    assert stop_of_data(stop_as_data(None, None)) == (None, None)


def test_reason_of_a_later_version_is_another_one() -> None:
    assert stop_of_data({"stop_reason": "tired", "stop_message": "enough"}) == (StopReason.OTHER, "enough")
