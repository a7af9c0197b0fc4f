"""Several targets at once: shift the ranking so that the way to all of them ends at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.unit_costs import unit_costs
from lightning_taylor_prune.pruning.targets import Target

_STRONGEST = 8.0
"""Largest exponent: beyond it the scores hardly count any more."""

_HALVINGS = 10

_APART = 0.015
"""Share of the way to a target that is left when another one is reached, from which on scores are shifted."""

_TOGETHER = 0.005
"""The same, from which on they need not be shifted more exactly: it is less than most units save."""


def balanced(
    groups: ChannelGroups, scores: Tensor, targets: Sequence[Target], take: Callable[[Tensor], ChannelGroups]
) -> Tensor:
    """Return scores by which all targets are reached together, as nearly as can be, where the plain ones reach one.

    Of the target that is reached first and the one that is farthest then, what a unit saves (``a`` of the first, ``b``
    of the other) shifts its score to ``score * (a / b) ** x``; the smallest ``x`` for which both ways end together is
    found by bisection. With ``x = 0`` these are the plain scores: so scores count as much as the targets allow.

    Args:
        groups: The groups of the network as it is now.
        scores: Shape ``[groups.num_units]``.
        targets: What is to be reached.
        take: Returns the groups after as much is removed, in the order of some scores, as the targets allow.
    """
    spans = [target.measure(groups) - target.floor for target in targets]
    if len(targets) < 2 or min(spans) <= 0:
        return scores

    def left(shifted: Tensor) -> list[float]:
        after = take(shifted)
        return [(target.measure(after) - target.floor) / span for target, span in zip(targets, spans, strict=True)]

    for _ in range(len(targets) - 1):
        shares = left(scores)
        first, last = shares.index(min(shares)), shares.index(max(shares))
        if shares[last] - shares[first] <= _APART:
            break
        ratio = _ratio(groups, targets[first], targets[last])
        exponent = _exponent(partial(_left_when_shifted, left, scores, ratio), first, last)
        scores = _shifted(scores, ratio, exponent)
    return scores


def _left_when_shifted(
    left: Callable[[Tensor], Sequence[float]], scores: Tensor, ratio: Tensor, exponent: float
) -> Sequence[float]:
    return left(_shifted(scores, ratio, exponent))


def _exponent(left: Callable[[float], Sequence[float]], first: int, last: int) -> float:
    """Return the exponent with which as much of the way is left to one target as to another."""
    low, high = 0.0, _STRONGEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        shares = left(middle)
        low, high = (middle, high) if shares[last] > shares[first] else (low, middle)
        if abs(shares[last] - shares[first]) <= _TOGETHER:
            return middle
    return high


def _ratio(groups: ChannelGroups, first: Target, last: Target) -> Tensor:
    """Return what each unit saves of one cost for what it saves of another, relative to all; never quite 0."""
    savings = [unit_costs(groups, target.measure) for target in (first, last)]
    one, other = ((saved / saved.mean().clamp(min=1e-30)).clamp(min=1e-3) for saved in savings)
    return one / other


def _shifted(scores: Tensor, ratio: Tensor, exponent: float) -> Tensor:
    factor = ratio**exponent
    return torch.where(scores < 0, scores / factor, scores * factor)
