"""Networks of other libraries train with three prunes, and load and resume, as they do without the callback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.clients.clients import CLIENTS
from tests.clients.runs import Run, built, can_be_exported, fit, loss, masked_error, reloaded, run, same_state
from tests.clients.training import Client

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

MOST_LOCKED = 0.2
"""Share of the parameters above which a client's remark says what locks them, and what to do."""


@pytest.fixture(scope="module", params=CLIENTS)
def client(request: pytest.FixtureRequest) -> Client:
    """A client whose library is there."""
    found = CLIENTS[request.param]
    pytest.importorskip(found.library, reason=f"{found.package} is not installed", exc_type=ImportError)
    return found


@pytest.fixture(scope="module")
def ran(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run for all laws, after one without the callback: what fails there is no fault of ours."""
    fit(built(client), epochs=1)
    return run(client, tmp_path_factory.mktemp("client"))


def test_three_prunes_are_done_or_a_remark_says_why_not(client: Client, ran: Run) -> None:
    assert len(ran.callback.history) == 3 or client.remark, ran.callback.stop_reason


def test_parameters_remain_finite(ran: Run) -> None:
    assert all(p.isfinite().all() for p in ran.module.parameters())


def test_little_is_locked_or_a_remark_says_why(client: Client, ran: Run) -> None:
    share = 1.0 if ran.callback.groups is None else ran.callback.groups.unpruned().locked_share
    assert share <= MOST_LOCKED or client.remark, ran.callback.stop_reason


def test_a_further_cut_is_the_same_as_a_mask(client: Client, ran: Run) -> None:
    assert ran.callback.groups is None or masked_error(client, ran) < 1e-3


def test_a_fresh_module_loads_the_pruned_weights(client: Client, ran: Run) -> None:
    fresh = reloaded(client, ran.last)
    assert same_state(fresh.module, ran.module) and torch.isfinite(loss(fresh))


def test_a_run_resumes_to_the_same_end(client: Client, ran: Run, tmp_path: Path) -> None:
    resumed = run(client, tmp_path, resume=ran.mid)
    assert same_state(resumed.module, ran.module)


def test_what_could_be_exported_still_can(client: Client, ran: Run) -> None:
    assert can_be_exported(reloaded(client, ran.last)) or not can_be_exported(built(client))
