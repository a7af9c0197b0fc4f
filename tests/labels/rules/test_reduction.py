"""Reductions: what is exact obeys the removal law, the rest is marked or locked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.labels.rules.laws import TOKENS, Labelled, channels_of, check_removal

IMAGES = torch.randn(2, 6, 4, 4)


# name -> (function, operands, components that can be removed)
EXACT: dict[str, tuple[Callable[..., Any], list[Tensor], int]] = {
    "mean_over_space": (lambda x: x.mean((2, 3)), [IMAGES], 2 + 6),
    "cumsum_over_tokens": (lambda x: x.cumsum(1), [TOKENS], 2 + 6),
    "sort_over_tokens": (lambda x: x.sort(1)[0], [TOKENS], 2 + 6),
    "topk_over_tokens": (lambda x: x.topk(2, 1)[0], [TOKENS], 2 + 6),
    "argmax_over_tokens": (lambda x: x.argmax(1), [TOKENS], 2 + 6),
    "median_over_tokens": (lambda x: x.median(1)[0], [TOKENS], 2 + 6),
    "differences_of_tokens": (lambda x: x.diff(dim=1), [TOKENS], 2 + 6),
    "fourier_over_tokens": (lambda x: torch.fft.rfft(x, dim=1).abs(), [TOKENS], 2 + 6),
    "fourier_in_space": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x)), [IMAGES], 2 + 6),
    "cosine_over_tokens": (lambda x, y: F.cosine_similarity(x, y, dim=1), [TOKENS, TOKENS + 1], 2 + 6),
    "matrix_norm_in_space": (lambda x: torch.linalg.matrix_norm(x), [IMAGES], 2 + 6),
    "nuclear_norm": (lambda x: torch.linalg.matrix_norm(x, "nuc", (1, 2)), [TOKENS], 2),
    "triangle": (lambda x: x.tril(), [IMAGES], 2 + 6),
    "softmax_over_tokens": (lambda x: x.softmax(1), [TOKENS], 2 + 6),
    "norm_over_tokens": (lambda x: F.normalize(x, dim=1), [TOKENS], 2 + 6),
}


@pytest.mark.parametrize("name", EXACT)
def test_removal_is_zeroing_beside_the_reduced_axis(name: str) -> None:
    function, operands, count = EXACT[name]
    assert check_removal(function, operands) >= count


ACROSS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "mean": (lambda x: x.mean(1), 1),
    "sum": (lambda x: x.sum(-1, keepdim=True), -1),
    "amax": (lambda x: x.amax((1, 2)), 1),
    "max": (lambda x: x.max(1)[0], 1),
    "var_mean": (lambda x: torch.var_mean(x, 1), 1),
    "std": (lambda x: x.std(), 1),
    "softmax": (lambda x: x.softmax(1), 1),
    "log_softmax": (lambda x: F.log_softmax(x, -1), -1),
    "cosine_similarity": (lambda x: F.cosine_similarity(x, x.flip(0), dim=1), 1),
    "pairwise_distance": (lambda x: F.pairwise_distance(x, x.flip(0)), -1),
    "dist": (lambda x: torch.dist(x, x.flip(0)), 1),
    "mse_loss": (lambda x: F.mse_loss(x, x.flip(0)), 1),
    "l1_loss_summed": (lambda x: F.l1_loss(x, x.flip(0), reduction="sum"), 1),
    "kl_div": (lambda x: F.kl_div(x, x.flip(0), reduction="sum"), 1),
    "frobenius": (lambda x: torch.linalg.norm(x, dim=(1, 2)), 1),
    "nanmean": (lambda x: x.nanmean(1), 1),
    "median": (lambda x: x.median(1)[0], 1),
    "normalize": (lambda x: F.normalize(x, dim=1), 1),
}


@pytest.mark.parametrize("name", ACROSS)
def test_removal_across_a_reduced_axis_is_marked(name: str) -> None:
    function, axis = ACROSS[name]
    labelled = Labelled(function, [TOKENS])
    assert channels_of(labelled, axis) <= set(labelled.outcome.inexact.tolist()) - set(labelled.outcome.locked)


LOCKED: dict[str, Callable[[Tensor], Any]] = {
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(1),
    "sort": lambda x: x.sort(1)[0],
    "topk": lambda x: x.topk(2, 1)[0],
    "argmax": lambda x: x.argmax(1),
    "max_index": lambda x: x.max(1)[1] + 1,
    "median_index": lambda x: x.median(1)[1] + 1,
    "kthvalue": lambda x: x.kthvalue(2, 1)[0],
    "diff": lambda x: x.diff(dim=1),
    "fourier": lambda x: torch.fft.fft(x, dim=1).abs(),
    "fourier_of_all": lambda x: torch.fft.fftn(x).abs(),
    "tril": lambda x: x.tril(),
    "targets": lambda x: F.mse_loss(x, torch.arange(60.0).view(2, 5, 6).to(x)),
}


@pytest.mark.parametrize("name", LOCKED)
def test_what_depends_on_order_or_number_locks(name: str) -> None:
    labelled = Labelled(LOCKED[name], [TOKENS])
    reasons = [labelled.outcome.locked.get(root, "free") for root in channels_of(labelled)]
    assert not any(reason == "free" or "label rule" in reason for reason in reasons)
