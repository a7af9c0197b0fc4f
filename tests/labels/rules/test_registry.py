"""The registry: what has no rule locks and is reported, a user's rule frees it, a rule that fails does no harm."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune.errors import PruningWarning
from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.labels.rules import find_rules, operator_name, register_rule, registry
from lightning_taylor_prune.labels.space import Labels
from lightning_taylor_prune.pruning.prune import prune_
from tests.networks import conv
from tests.oracles import mask_readers_, relative_error

OPERATOR = "label_rule_tests.double_it"


@torch.library.custom_op(OPERATOR.replace(".", "::"), mutates_args=())
def double_it(x: Tensor) -> Tensor:
    return 2 * x


@double_it.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


double_it.register_autograd(lambda ctx, grad: 2 * grad)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = conv(3, 8), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(double_it(self.first(x)))


@pytest.fixture
def register() -> Iterator[Callable[[Callable[..., Any]], None]]:
    """Give the custom operator a rule for the duration of a test."""
    yield lambda rule: register_rule(OPERATOR)(rule) and None
    registry._RULES.pop(OPERATOR, None)


def images() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_an_operator_without_rule_locks_and_is_reported() -> None:
    reasons = {locked.name: (locked.num_channels, locked.reason) for locked in find_groups(Custom(), images()).locked}
    count, reason = reasons["first"]
    assert count == 8
    assert re.search(rf"without a label rule \({OPERATOR}, .*test_registry\.py:\d+\)", reason)


def test_a_rule_frees_the_operator(register: Callable[..., None]) -> None:
    register(lambda ctx, x: x.computed())
    model = Custom()
    groups = find_groups(model, images())
    plan = groups.plan({"first": [1, 4, 5]})
    prune_(model, plan)
    pruned = model(images())
    assert [(g.name, g.num_channels) for g in groups] == [("first", 8)]
    model = mask_readers_(_same_weights(Custom), plan)
    assert relative_error(_pruned(plan)(images()), model(images())) < 1e-6
    assert pruned.shape == (2, 4, 6, 6)


def _same_weights(factory: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return factory()


def _pruned(plan: Any) -> nn.Module:
    model = _same_weights(Custom)
    prune_(model, plan)
    return model


def test_a_rule_that_raises_locks_with_a_warning(register: Callable[..., None]) -> None:
    def broken(ctx: Any, x: Labels) -> Labels:
        raise KeyError("what now")

    register(broken)
    with pytest.warns(PruningWarning, match=rf"`{OPERATOR}`.*KeyError.*what now.*locked"):
        groups = find_groups(Custom(), images())
    assert list(groups) == []


def test_a_rule_that_predicts_another_shape_locks_with_a_warning(register: Callable[..., None]) -> None:
    register(lambda ctx, x: Labels((1, 2), ()))
    with pytest.warns(PruningWarning, match="predicts another shape"):
        groups = find_groups(Custom(), images())
    assert list(groups) == []


def test_registering_twice_raises(register: Callable[..., None]) -> None:
    register(lambda ctx, x: x)
    with pytest.raises(ValueError, match=rf"`{OPERATOR}` has a label rule already"):
        register_rule(OPERATOR)(lambda ctx, x: x)


def test_a_second_rule_for_a_known_operator_raises() -> None:
    with pytest.raises(ValueError, match=r"`aten.conv2d` has a label rule already: conv"):
        register_rule("aten.conv2d")(lambda ctx: None)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (torch.ops.aten.relu_.default, "aten.relu"),
        (torch.ops.aten.add.Tensor, "aten.add"),
        (torch.ops.label_rule_tests.double_it.default, OPERATOR),
    ],
    ids=["in_place", "overload", "custom"],
)
def test_operators_are_named_without_overload_and_in_place_mark(target: Any, name: str) -> None:
    assert operator_name(target) == name


@pytest.mark.parametrize("name", ["tanh", "erf", "sin", "rsqrt", "logit", "hypot", "atan2", "relu_", "heaviside"])
def test_what_torch_tags_as_pointwise_needs_no_rule_of_its_own(name: str) -> None:
    assert find_rules(getattr(torch.ops.aten, name).default) is find_rules(torch.ops.aten.add.Tensor)
