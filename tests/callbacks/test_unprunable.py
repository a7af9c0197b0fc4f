"""Networks of which nothing, or little, can be pruned: training goes on, and the reasons are said."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_taylor_prune import TaylorPruningCallback, TraceError, find_groups
from tests.lightning_modules import Classifier, loader, small_network, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class LeavesTorch(nn.Module):
    """Cannot be traced, nor can any part of it that has something to remove."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.flatten(1))
        return y * float(sum(y.detach().untyped_storage().tolist()) < 1e9)


def one_layer() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


class HalfLocked(nn.Module):
    """Has two layers of equal size, of which one feeds nothing but an output."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(64, 100), nn.Linear(64, 100), nn.Linear(100, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.last(self.one(x.flatten(1)).relu()), self.two(x.flatten(1))


def losses(network: nn.Module, *callbacks: Any) -> list[float]:
    """Train, and return what the module has logged and its weights come to."""
    torch.manual_seed(0)
    module = Classifier(network=network)
    fitting = trainer(more_callbacks=list(callbacks), max_epochs=2)
    fitting.fit(module, loader())
    return [float(fitting.callback_metrics["train_loss"]), *(p.sum().item() for p in module.parameters())]


def seeded(make: Any) -> nn.Module:
    torch.manual_seed(1)
    return make()


@pytest.mark.parametrize("make", [LeavesTorch, one_layer], ids=["cannot be traced", "all locked"])
def test_training_goes_on_as_without_the_callback(make: Any) -> None:
    callback = TaylorPruningCallback(every_n_steps=2)
    with pytest.warns(UserWarning, match="nothing can be pruned"):
        found = losses(seeded(make), callback)
    assert found == losses(seeded(make))
    assert callback.stop_reason is not None and callback.history == []


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (LeavesTorch, TraceError, "Cannot trace"),
        (one_layer, MisconfigurationException, "100% of the parameters cannot be pruned"),
    ],
    ids=["cannot be traced", "all locked"],
)
def test_it_is_an_error_where_that_is_asked_for(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        losses(make(), TaylorPruningCallback(on_unprunable="error"))


def test_a_wrong_policy_is_named() -> None:
    with pytest.raises(MisconfigurationException, match="`on_unprunable` to be one of warn, error, but got 'raise'"):
        TaylorPruningCallback(on_unprunable="raise")


def test_a_large_locked_share_is_a_warning_with_its_reasons() -> None:
    with pytest.warns(UserWarning, match=r"100% of the parameters cannot be pruned.\n.*network\.1 \(4\).*output"):
        losses(one_layer(), TaylorPruningCallback(every_n_steps=100))


@pytest.mark.parametrize(
    ("make", "share"), [(one_layer, 1.0), (small_network, 0.0), (HalfLocked, 0.5)], ids=["all", "nothing", "half"]
)
def test_the_locked_share_counts_parameters_that_no_unit_touches(make: Any, share: float) -> None:
    assert find_groups(make(), torch.zeros(2, 1, 8, 8)).locked_share == pytest.approx(share, abs=0.01)


def test_a_small_locked_share_is_an_information(caplog: pytest.LogCaptureFixture) -> None:
    class Resized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.free, self.held, self.last = nn.Linear(64, 32), nn.Linear(32, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.held(self.free(x.flatten(1)).relu()).view(-1, 6))

    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        losses(Resized(), TaylorPruningCallback(every_n_steps=100))
    assert any("of the parameters cannot be pruned" in r.message for r in caplog.records)


def test_outputs_that_hold_whole_layers_are_named(caplog: pytest.LogCaptureFixture) -> None:
    class AlsoReturned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.free, self.held, self.last = nn.Linear(64, 32), nn.Linear(64, 12), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.last(self.free(x).relu()) + self.held(x).view(-1, 3, 4).sum(1)

    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        losses(AlsoReturned(), TaylorPruningCallback(every_n_steps=100))
    assert any("held (12)" in r.message for r in caplog.records)
