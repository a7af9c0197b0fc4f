"""Networks of which a part is compiled, with the default backend: analysed as written, pruned, and compiled anew."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune import TaylorPruningCallback, find_groups, prune_
from tests.lightning_modules import Classifier, loader, small_network, trainer
from tests.oracles import evaluate, mask_readers_, random_units, relative_error

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Parts(nn.Module):
    """A backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        layers = small_network()
        self.backbone, self.head = layers[:6], layers[6:]
        self.between: Callable[[Tensor], Tensor] = _between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.backbone(x)))  # type: ignore[no-any-return]


def _between(x: Tensor) -> Tensor:
    return torch.relu(x) * 1.5


def wrapped_child(model: Parts) -> None:
    model.backbone = torch.compile(model.backbone)


def in_place(model: Parts) -> None:
    model.backbone.compile()


def forward_of_a_child(model: Parts) -> None:
    model.backbone.forward = torch.compile(model.backbone.forward)


def own_forward(model: Parts) -> None:
    model.forward = torch.compile(model.forward)


def free_function(model: Parts) -> None:
    model.between = torch.compile(_between)


KINDS = [wrapped_child, in_place, forward_of_a_child, own_forward, free_function]

kinds = pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)


@pytest.fixture(autouse=True)
def fresh() -> Any:
    """Without what other tests have compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def plain(name: str) -> str:
    return name.replace("_orig_mod.", "")


def pruned_in_training(make: Callable[[Parts], None] | None, criterion: str = "taylor") -> tuple[Classifier, Any]:
    model = Classifier(Parts())
    if make is not None:
        make(model.network)  # type: ignore[arg-type]
    callback = TaylorPruningCallback(every_n_steps=2, filters_per_prune=2, max_prunes=2, criterion=criterion)
    trainer(callback, max_epochs=1).fit(model, loader())
    return model, callback


@kinds
def test_a_compiled_part_is_analysed_and_pruned_as_masked(make: Callable[[Parts], None]) -> None:
    model, example = Parts(), (torch.randn(2, 1, 8, 8),)
    twin = copy.deepcopy(model)
    make(model)
    model(*example), twin(*example)
    groups, same = find_groups(model, example), find_groups(twin, example)
    assert [plain(group.name) for group in groups] == [group.name for group in same]
    units = random_units(groups)
    prune_(model, groups.plan(units))
    masked = mask_readers_(twin, same.plan({plain(name): chosen for name, chosen in units.items()}))
    assert relative_error(evaluate(model, example), evaluate(masked, example)) < 1e-5


@kinds
@pytest.mark.slow
def test_training_with_a_compiled_part_prunes_what_it_prunes_without(make: Callable[[Parts], None]) -> None:
    model, _ = pruned_in_training(make)
    expected, _ = pruned_in_training(None)
    shapes = {plain(name): tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == {name: tuple(value.shape) for name, value in expected.state_dict().items()}
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(model.eval()(x), expected.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["taylor_examples", "taylor_activation", "taylor_gate"])
@pytest.mark.parametrize("make", [wrapped_child, in_place], ids=lambda make: make.__name__)
def test_scores_do_not_depend_on_compilation(make: Callable[[Parts], None], criterion: str) -> None:
    _, compiled = pruned_in_training(make, criterion)
    _, eager = pruned_in_training(None, criterion)
    kept = {plain(name): units.tolist() for name, units in compiled.groups.kept_units().items()}
    assert kept == {name: units.tolist() for name, units in eager.groups.kept_units().items()}
