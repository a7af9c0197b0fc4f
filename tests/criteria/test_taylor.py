"""The Taylor criteria against gates and against gradients of activations."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_taylor_prune.criteria.criterion import CRITERIA
from tests.criteria.measured import build, per_group, relative, score


def test_gate_score_is_activation_times_gradient_after_normalisation() -> None:
    model, example, groups = build("conv_bn")
    outputs: list[Tensor] = []
    for name in ("1", "4"):
        model.get_submodule(name).register_forward_hook(lambda m, a, y: (y.retain_grad(), outputs.append(y))[0])
    actual = score(CRITERIA["taylor_gate"](model, groups), model, example)
    expected = torch.cat([(y * y.grad).sum((0, 2, 3)) for y in outputs]).square().detach()
    assert relative(actual, expected) < 1e-10


def test_gate_score_equals_reader_score_where_relu_follows() -> None:
    model, example, groups = build("conv_bn")
    gate, reader = (score(CRITERIA[n](model, groups), model, example) for n in ("taylor_gate", "taylor"))
    assert relative(gate, reader) < 1e-8


def test_gate_score_falls_back_on_readers() -> None:
    model, example, groups = build("norm_without_affine")
    gate, reader = (score(CRITERIA[n](model, groups), model, example) for n in ("taylor_gate", "taylor"))
    assert gate[:10].equal(reader[:10]) and relative(gate[10:], reader[10:]) < 1e-8


def test_coupled_unit_is_summed_before_it_is_squared() -> None:
    model, example, groups = build("residual")
    gate = torch.ones(2, 12, dtype=torch.float64, requires_grad=True)  # one row per reader of the stream
    model.a.register_forward_pre_hook(lambda m, args: (args[0] * gate[0].view(-1, 1, 1),))
    model.head[2].register_forward_pre_hook(lambda m, args: (args[0] * gate[1],))
    actual = per_group(groups, score(CRITERIA["taylor"](model, groups), model, example))["stem"]
    together, apart = gate.grad.sum(0).square(), gate.grad.square().sum(0)
    assert relative(actual, together) < 1e-10 < 0.1 < relative(apart, together)


def test_weight_score_squares_weight_by_weight() -> None:
    model, example, groups = build("residual")
    actual = per_group(groups, score(CRITERIA["taylor_weight"](model, groups), model, example))["stem"]
    expected = sum((w * w.grad).square().sum((1, 2, 3)) for w in (model.stem.weight, model.b.weight)).detach()
    assert relative(actual, expected) < 1e-10
