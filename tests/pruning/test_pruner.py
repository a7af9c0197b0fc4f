"""The pruner in plain PyTorch loops: it prunes, says what it did, and resumes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune import PlanError, Pruner, PruningWarning, find_groups, select
from lightning_taylor_prune.errors import ArgumentError
from tests.lightning_modules import Classifier, loader, small_network, trainer
from tests.oracles import differences, state_of

EXAMPLE = torch.zeros(8, 1, 8, 8)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), 1e-2)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    pruner: Pruner,
    batches: list[tuple[Tensor, Tensor]],
    every: int = 3,
) -> list[float]:
    """Train as a user does, and prune after every few steps; returns the losses."""
    losses = []
    for step, (x, y) in enumerate(batches, 1):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        pruner.update()
        optimizer.step()
        losses.append(loss.item())
        if step % every == 0:
            pruner.prune(filters=3)
    return losses


def built(**arguments: Any) -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
    model = small_network()
    optimizer = adam(model)
    return model, optimizer, Pruner(model, EXAMPLE, optimizers=[optimizer], **arguments)


def test_a_plain_loop_prunes_and_trains_on() -> None:
    model, optimizer, pruner = built()
    train(model, optimizer, pruner, list(loader()))
    assert (pruner.groups.num_filters, [row["removed"] for row in pruner.history]) == (22, [3, 3])


def test_a_plain_loop_prunes_what_the_callback_prunes() -> None:
    from lightning_taylor_prune import TaylorPruningCallback

    module = Classifier(optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-2))
    callback = TaylorPruningCallback(every_n_steps=3, filters_per_prune=3, validate_after_prune=False)
    trainer(callback).fit(module, loader())
    model, optimizer, pruner = built()
    train(model, optimizer, pruner, list(loader()))
    expected = {f"network.{name}": value for name, value in model.state_dict().items()}
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("optimizer_state", ["reset", "slice"])
def test_a_resumed_loop_equals_an_uninterrupted_one(optimizer_state: Any) -> None:
    batches = list(loader())
    model, optimizer, pruner = built(optimizer_state=optimizer_state)
    train(model, optimizer, pruner, batches[:4])
    saved = copy.deepcopy([pruner.state_dict(), model.state_dict(), optimizer.state_dict()])
    uninterrupted = train(model, optimizer, pruner, batches[4:])
    model, optimizer, pruner = built(optimizer_state=optimizer_state)
    for part, state in zip((pruner, model, optimizer), saved, strict=True):
        part.load_state_dict(state)
    assert train(model, optimizer, pruner, batches[4:]) == uninterrupted


def test_a_state_with_channels_that_the_network_has_lost_is_refused() -> None:
    model, optimizer, pruner = built()
    saved = copy.deepcopy(pruner.state_dict())
    train(model, optimizer, pruner, list(loader())[:3])
    before = state_of(model)
    with pytest.raises(PlanError, match="has lost channels that the state has: groups"):
        pruner.load_state_dict(saved)
    assert differences(before, state_of(model)) == []


def test_an_outcome_says_why_no_more_was_removed() -> None:
    model, optimizer, pruner = built(stop_at={"params": 0.95})
    train(model, optimizer, pruner, list(loader())[:2])
    assert pruner.prune(filters=20).reason == "target"


@pytest.mark.parametrize("criterion", ["taylor", "taylor_examples"])
def test_a_network_of_which_nothing_can_be_pruned_has_nothing_left(criterion: str) -> None:
    model = nn.Linear(5, 3)
    pruner = Pruner(model, torch.randn(2, 5), criterion=criterion)
    model(torch.randn(2, 5)).sum().backward()
    pruner.update()
    assert pruner.prune(2).reason == "nothing_left"


def test_a_prune_without_scores_says_so_and_removes_nothing() -> None:
    _, _, pruner = built()
    with pytest.warns(PruningWarning, match="none of the 0 minibatches"):
        outcome = pruner.prune()
    assert (bool(outcome), outcome.reason) == (False, "no_scores")


def test_scores_of_a_minibatch_that_is_scaled_are_those_of_the_mean_loss() -> None:
    scores = []
    for scale in (1.0, 8.0):
        model, _, pruner = built()
        x, y = next(iter(loader()))
        (scale * F.cross_entropy(model(x), y)).backward()
        pruner.update(1 / scale)
        scores.append(pruner.scores)
    torch.testing.assert_close(scores[0], scores[1])


def test_a_wrapped_network_is_refused() -> None:
    model = nn.DataParallel(small_network())
    with pytest.raises(PlanError, match="wrapped in DataParallel"):
        Pruner(model, EXAMPLE)


# --- the same words everywhere --------------------------------------------------------------------------------------

WRONG = {
    "min_channels": [0, 1.5, True, "2"],
    "max_pruning_ratio": [0, 1.5, float("nan"), float("inf"), "0.5", True],
    "round_to": [0, 2.0, None],
    "exclude": ["0", [3], 3],
    "stop_at": [{"flops": 1}, {"params": -1}, {"params": float("nan")}, {"params": True}, 0.5, ["params"]],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values], ids=repr)
def test_select_pruner_and_callback_refuse_the_same_values_in_the_same_words(name: str, value: Any) -> None:
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from lightning_taylor_prune import TaylorPruningCallback

    groups = find_groups(small_network(), EXAMPLE)
    messages = []
    for error, refuse in (
        (ArgumentError, lambda: select(groups, torch.rand(groups.num_units), 1, **{name: value})),
        (ArgumentError, lambda: Pruner(small_network(), EXAMPLE, **{name: value})),
        (MisconfigurationException, lambda: TaylorPruningCallback(**{name: value})),
    ):
        with pytest.raises(error) as caught:
            refuse()
        messages.append(str(caught.value))
    assert len(set(messages)) == 1 and name in messages[0] and "but got" in messages[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"criterion": "taylr"}, "`criterion` to be one of .* but got 'taylr'"),
        ({"criterion": None}, "criterion"),
        ({"optimizer_state": "keep"}, "optimizer_state"),
        ({"normalize": "softmax"}, "normalize"),
        ({"macs_weight": -1.0}, "macs_weight"),
        ({"macs_weight": float("nan")}, "macs_weight"),
        ({"rewrite_hard_coded": "yes"}, "rewrite_hard_coded"),
        ({"rank_timeout": -1}, "rank_timeout"),
    ],
    ids=str,
)
def test_wrong_setting_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Pruner(small_network(), EXAMPLE, **arguments)


@pytest.mark.parametrize("filters", [0, -3, 2.5, True, "8"], ids=repr)
def test_wrong_number_of_filters_is_named(filters: Any) -> None:
    _, _, pruner = built()
    with pytest.raises(ArgumentError, match="`filters` to be an int of at least 1"):
        pruner.prune(filters=filters)


def test_group_scores_are_kept_apart_of_refused_groups() -> None:
    _, _, pruner = built(criterion="magnitude")
    pruner.refused.add("3")
    pruner.prune(filters=4)
    assert np.array_equal([g.num_channels for g in pruner.groups], [4, 16])
