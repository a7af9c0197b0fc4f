"""What belongs together in a network: what its operators tie, and whatever else is known of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_taylor_prune.labels.idle import lock_unused, settle_idle
from lightning_taylor_prune.labels.places import Axis, Lock, Tie
from lightning_taylor_prune.labels.rectangles import settle_rectangles
from lightning_taylor_prune.labels.rules.context import Expectation
from lightning_taylor_prune.labels.runs import LabelledRuns
from lightning_taylor_prune.labels.space import Field, Labels
from lightning_taylor_prune.labels.ties import apply_tie
from lightning_taylor_prune.labels.twins import lock_outputs_of_leaders, tie_twins, used_tensors
from lightning_taylor_prune.modules.idle import IdleAxis
from lightning_taylor_prune.modules.likeness import Twin
from lightning_taylor_prune.tracing.recorder import Trace


@dataclass(frozen=True, eq=False)
class Propagation:
    """The outcome of running traces on labels: what is tied, and the labels of every result.

    Attributes:
        traces: The traces, one per way in which the network runs.
        axes: Every axis of every parameter and buffer, tied ones once.
        roots: Root of every label: positions with equal roots are removed together. Shape ``[labels]``.
        locked: Reason for every locked root.
        inexact: Sorted roots whose removal is not the same as zero.
        results: Per trace and operator, the labels of its results.
        touched: Per trace and operator, the labels of its operands and results.
        readers: Numbers of the parameter axes that read channels.
        writers: Numbers of the parameter axes that write channels, in the order of execution.
        expectations: Integer arguments that must follow the labels.
        macs: Per trace and operator, its cost as (factor, fields).
        fixed: Names of parameters and buffers that keep their sizes, as they are also used outside of the traces.
        made: Labels of the module attributes that every forward pass makes anew of parameters, by qualified name.
        twins: Modules that follow others and lose the same channels.
    """

    traces: Sequence[Trace]
    axes: Sequence[Axis]
    roots: Field
    locked: Mapping[int, str]
    inexact: Field
    results: Sequence[Sequence[Sequence[Labels]]]
    touched: Sequence[Sequence[Sequence[Labels]]]
    readers: frozenset[int]
    writers: tuple[int, ...]
    expectations: Sequence[Mapping[int, Sequence[Expectation]]]
    macs: Sequence[Mapping[int, Sequence[tuple[int, Sequence[Field]]]]]
    fixed: tuple[str, ...]
    made: Mapping[str, Labels]
    twins: tuple[Twin, ...]


def propagate(
    ran: LabelledRuns,
    ties: Sequence[Tie] = (),
    fixed: Collection[str] = (),
    locks: Sequence[Lock] = (),
    twins: Sequence[Twin] = (),
    idle: Sequence[IdleAxis] = (),
) -> Propagation:
    """Tie and lock whatever operators alone do not: the outcome for the whole network.

    Args:
        ran: Traces that were run on labels; they can be used again.
        ties: Axes to tie in addition to those that operators tie.
        fixed: Names of parameters and buffers that are also used outside of the traces.
        locks: Channels to lock beyond what the operators do.
        twins: Modules that follow others: their channels are tied position by position.
        idle: Axes of layers that no trace runs.
    """
    space, traces, axes, parameters, runs = ran.space.copy(), ran.traces, ran.axes, ran.parameters, ran.runs
    for tie in ties:
        apply_tie(space, [run.results for run in runs], tie)
    tie_twins(space, parameters, twins)
    lock_outputs_of_leaders(space, traces, [run.labels_of for run in runs], twins)
    for name in fixed:
        scripted = name in traces[0].scripted
        for f in parameters[name].fields:
            space.lock(f, _SCRIPTED if scripted else "is also used by code that cannot be traced")
    for lock in locks:
        space.lock(lock.labels, lock.reason)
    lock_unused(space, used_tensors(traces, twins), parameters, {(axis.tensor, axis.dim) for axis in idle})
    notes = [run.notes for run in runs]
    settle_rectangles(space, [r for n in notes for r in n.rectangles], [d for n in notes for d in n.deferred])
    if idle:
        settle_idle(space, idle, parameters, (value for run in runs for value in run.activations()))
    starts = np.array([axis.start for axis in axes] + [np.inf])
    return Propagation(
        traces=traces,
        axes=axes,
        roots=space.roots(),
        locked=space.locked(),
        inexact=space.inexact(),
        results=[run.results for run in runs],
        touched=[run.touched for run in runs],
        readers=frozenset(_axis_numbers(starts, [f for n in notes for f in n.readers])),
        writers=tuple(_axis_numbers(starts, [f for n in notes for f in n.writers])),
        expectations=[n.expectations for n in notes],
        macs=[n.macs for n in notes],
        fixed=tuple(fixed),
        made={name: labels for run in reversed(runs) for name, labels in run.made.items()},
        twins=tuple(twins),
    )


_SCRIPTED = "belongs to a scripted module, which cannot change its shapes"


def _axis_numbers(starts: Any, fields: Sequence[Field]) -> list[int]:
    """Return the numbers of the parameter axes that the labels belong to, in order of first appearance."""
    numbers: dict[int, None] = {}
    for f in fields:
        found = np.unique(np.searchsorted(starts, f.ravel(), side="right") - 1)
        numbers.update(dict.fromkeys(n for n in found.tolist() if n < len(starts) - 1))
    return list(numbers)
