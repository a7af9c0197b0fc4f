"""What is known of a network's groups, and what share of its parameters can be removed."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np

from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.labels.rules.registry import find_rules, operator_name
from recipes.benchmarks.coverage_messages import shorten

_ENDS = (
    "is an output of the network",
    "is indexed by a tensor (aten.embedding",
    "lies along a spatial axis of a convolution",
)
"""How reasons begin that lie in the nature of a network: what comes out, rows of a table that goes in, kernels."""


def facts(groups: ChannelGroups) -> dict[str, Any]:
    """Return what is known of a network's groups."""
    operators = [op for t in groups.structure.propagation.traces for op in t.ops]
    without = Counter(operator_name(op.target) for op in operators if find_rules(op.target) is None)
    shares, reasons = shares_of(groups)
    locked = sorted(groups.locked, key=lambda entry: -entry.num_channels)
    return {
        "operators": sorted({operator_name(op.target) for op in operators}),
        "operators_without_rule": dict(without.most_common()),
        "traces": len(groups.structure.propagation.traces),
        "groups": len(groups),
        "exact_groups": sum(group.exact for group in groups),
        "units": groups.num_units,
        "shares": shares,
        "locked_parameters": reasons,
        "locked_layers": [[e.name, e.num_channels, shorten(e.reason)] for e in locked],
        "size_rules": [[r.module, r.path] for r in groups.analysis.changes.size_rules],
    }


def shares_of(groups: ChannelGroups) -> tuple[dict[str, float], dict[str, int]]:
    """Return what share of the parameters can be removed, and why the rest cannot.

    Every element of every parameter (tied ones once) is one of:

    - ``prunable``: on at least one of its axes it lies at a position that belongs to a unit of some group, so that
      removing the unit removes the element. The weight of a classifier is prunable although its class axis is not.
    - ``locked``: not prunable, and on at least one axis its position is locked for another reason than being an output
      of the network.
    - ``ends``: neither; all its positions are outputs of the network, lie along axes that no weight of the network
      writes or reads (kernel positions, the channels of the input image), or there is no axis longer than 1.

    Returns:
        The three shares, which add up to 1; and the number of locked elements by reason. An element that is locked on
        two axes for different reasons counts once, under both reasons joined.
    """
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    propagation = groups.structure.propagation
    numbers: dict[str, list[int]] = {}
    for number, axis in enumerate(propagation.axes):
        numbers.setdefault(axis.tensor, []).append(number)
    is_parameter = propagation.traces[0].is_parameter
    for name, shape in groups.shapes.items():
        if name in is_parameter:
            elements, why = _elements(groups, shape, numbers.get(name, []))
            counts += elements
            reasons += why
    total = max(sum(counts.values()), 1)
    shares = {key: counts[key] / total for key in ("prunable", "locked", "ends")}
    return shares, dict(reasons.most_common())


def _elements(groups: ChannelGroups, shape: tuple[int, ...], axes: list[int]) -> tuple[Counter[str], Counter[str]]:
    """Count one parameter's elements by kind, and its locked ones by reason."""
    elements: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    fates = [_fates(groups, number) for number in axes]  # the other axes have size 1
    total, rest = math.prod(shape), 0
    for combination in itertools.product(*(fate.items() for fate in fates)):
        count = math.prod(n for _, n in combination)
        why = sorted({reason for reason, _ in combination if reason and not reason.startswith(_ENDS)})
        rest += count
        elements["locked" if why else "ends"] += count
        if why:
            reasons[" + ".join(why)] += count
    elements["prunable"] += total - rest
    return elements, reasons


def _fates(groups: ChannelGroups, number: int) -> Counter[str]:
    """Count the positions of an axis that cannot be removed, by reason; ``""`` where there is none."""
    roots, locked = groups.structure.roots_on(number), groups.structure.propagation.locked
    kept = roots[groups.units_on(number) < 0]
    unique, counts = np.unique(kept, return_counts=True)
    fates: Counter[str] = Counter()
    for root, count in zip(unique.tolist(), counts.tolist(), strict=True):
        fates[shorten(locked.get(root, ""))] += count
    return fates
