"""Progress of an analysis: silent while short, then a line now and then, also in the middle of what takes long."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
import torch
from lightning_utilities.core import rank_zero
from torch import nn

from lightning_taylor_prune import TaylorPruningCallback, find_groups
from lightning_taylor_prune.tracing import progress
from lightning_taylor_prune.tracing.progress import Progress, note, reporting, tick
from tests.lightning_modules import Classifier, loader, small_network, trainer

FIVE_SECONDS_PER_LOOK = itertools.count(0, 5)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five seconds pass whenever an analysis looks at the clock."""
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(FIVE_SECONDS_PER_LOOK))


@pytest.mark.parametrize(
    ("times", "lines"),
    [
        pytest.param([0, 1], 0, id="short"),
        pytest.param([0, 2.5, 3], 1, id="past two seconds"),
        pytest.param([0, 3, 6, 7, 12], 3, id="long"),
    ],
)
def test_an_analysis_says_what_it_does_once_it_takes_long(
    times: list[float], lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, said = iter(times), []
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    noted = Progress(said.append)
    for _ in times[1:]:
        noted.note("trying cuts")
    assert len(said) == lines


def lines_of(model: nn.Module, example: Any) -> list[str]:
    said: list[str] = []
    with reporting(said.append):
        find_groups(model, example)
    return said


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("phase", ["tracing the network", "finding what belongs together", "trying cuts"])
def test_every_operator_of_a_long_phase_can_say_something(phase: str) -> None:
    said = lines_of(small_network(), torch.zeros(2, 1, 8, 8))
    assert sum(phase in line for line in said) >= 9  # as many as the network has layers


class ChoosesByValue(nn.Module):
    """Cannot be traced as a whole: which branch runs depends on a number that is worked out outside of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return y[y[:, 0] > y.mean()].sum() if sum(y.detach().untyped_storage().tolist()) > 0 else y.mean()


@pytest.mark.usefixtures("slow")
@pytest.mark.filterwarnings("ignore::lightning_taylor_prune.errors.PruningWarning")
@pytest.mark.parametrize("phase", ["running the network once", "looking for submodules"])
def test_the_search_for_submodules_says_something(phase: str) -> None:
    assert sum(phase in line for line in lines_of(ChoosesByValue(), torch.ones(2, 8))) >= 2


@pytest.mark.usefixtures("slow")
def test_a_contradiction_is_said() -> None:
    class Fixed(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[1](self[0](x).view(-1, 2, 3).flatten(1))

    assert any(
        "contradiction 1" in line for line in lines_of(Fixed(nn.Linear(8, 6), nn.Linear(6, 4)), torch.ones(2, 8))
    )


@pytest.mark.usefixtures("slow")
def test_a_user_of_a_trainer_sees_it(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = rank_zero.log  # of whichever of Lightning's packages was imported last
    monkeypatch.setattr(logger, "handlers", [caplog.handler])  # it may hand nothing on to the root
    with caplog.at_level(logging.INFO, logger=logger.name):
        trainer(TaylorPruningCallback(every_n_steps=100), max_epochs=1, limit_train_batches=1).fit(
            Classifier(), loader()
        )
    shown = [r.getMessage() for r in caplog.records if r.name == logger.name]
    assert any(line.startswith("Analysing the network to find out") for line in shown)


@pytest.mark.usefixtures("slow")
def test_without_a_trainer_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lightning_taylor_prune"):
        find_groups(small_network(), torch.zeros(2, 1, 8, 8))
    assert caplog.records[0].getMessage().startswith("Analysing the network to find out")


@pytest.mark.usefixtures("slow")
def test_nothing_is_said_where_nothing_is_analysed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        note("training")
        tick()
    assert not caplog.records
