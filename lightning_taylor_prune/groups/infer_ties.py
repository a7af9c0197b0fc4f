"""Infer which axes are tied because the network's code uses the size of one for the other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_taylor_prune.groups.call_places import CallPlace
from lightning_taylor_prune.groups.divergence import Divergence
from lightning_taylor_prune.groups.infer_sizes import changed_sizes, counted_axes
from lightning_taylor_prune.groups.shapes import is_multiple
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.groups.trial import Trial
from lightning_taylor_prune.labels.places import AxisRef, Tie
from lightning_taylor_prune.labels.space import Field
from lightning_taylor_prune.modules.rewrite import own_class


def find_ties(trial: Trial, divergence: Divergence) -> Iterator[tuple[Tie, ...]]:
    """Yield ties of axes that may explain why the network's code failed at an operator, the likeliest first.

    The code computes a size from another axis than the one with that size (``reshape(batch, length, x.shape[-1])``):
    positions of both must then be removed together. Each tie comes with the same tie in all modules of the class.
    """
    structure, (trace, op) = trial.structure, divergence.site
    counts, ops = trial.counts, structure.propagation.traces[trace].ops
    producers = {node: i for i, node in enumerate(ops)}
    operands = [producers[n] for n in ops[op].all_input_nodes if n in producers]
    own = [ref for i in (op, *operands) for ref in counted_axes(structure, trace, i)]
    others = [ref for ref, _, _ in changed_sizes(trial, divergence) if isinstance(ref, AxisRef)]
    pairs = [
        Tie(axis, other)
        for axis in own
        for other in others
        if is_multiple(structure.size(axis, None), structure.size(other, None))
        and _labels_differ(structure, axis, other)
    ]
    ranked = sorted(pairs, key=lambda tie: structure.size(tie.follows, counts) not in divergence.numbers)
    for tie in ranked:
        if alike := tuple(_alike_ties(trial, divergence, tie)):
            yield (tie, *alike)
        yield (tie,)


def keeps_a_choice(structure: Structure, tie: Tie) -> bool:
    """Whether some of the tied channels can still be removed while others are kept."""
    roots = np.unique(_roots_along(structure, tie.follows))
    return len(roots) > 1 and not any(root in structure.propagation.locked for root in roots.tolist())


def _labels_differ(structure: Structure, axis: AxisRef, other: AxisRef) -> bool:
    lines = [_roots_along(structure, ref) for ref in (axis, other)]
    return len(lines[0]) != len(lines[1]) or bool((lines[0] != lines[1]).any())


def _roots_along(structure: Structure, ref: AxisRef) -> Field:
    propagation = structure.propagation
    labels = propagation.results[ref.trace][ref.op][ref.number].along(ref.axis)
    if labels is None:
        return np.empty(0, dtype=np.int64)
    line: Field = np.moveaxis(labels, ref.axis, -1).reshape(-1, labels.shape[ref.axis])[0]
    return propagation.roots[line]


def _alike_ties(trial: Trial, divergence: Divergence, tie: Tie) -> Iterator[Tie]:
    """Yield the tie at the same places of other modules; their class is the innermost that runs both operators."""
    names = {id(module): name for name, module in trial.root.named_modules()}
    structure = trial.structure
    for module in divergence.modules:
        name = names.get(id(module), "")
        places = [CallPlace.of(structure.propagation.traces[ref.trace], name, ref.op) for ref in tie]
        if all(places):
            break
    else:
        return
    for other_name, other in trial.root.named_modules():
        if other is module or own_class(other) is not own_class(module):
            continue
        axis, follows = (
            place.size_in(structure, other_name, ref) if place else None for ref, place in zip(tie, places, strict=True)
        )
        if (
            isinstance(axis, AxisRef)
            and isinstance(follows, AxisRef)
            and is_multiple(structure.size(axis, None), structure.size(follows, None))
        ):
            yield Tie(axis, follows)
