"""Two laws that tie label rules to the real operators.

*Movement*: every position of a result carries the labels of the element that the real operator puts there.
*Removal*: cutting a component out of all operands gives the result of zeroing it, less the positions that carry it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_taylor_prune.labels.propagate import Propagation, propagate
from lightning_taylor_prune.labels.runs import run_on_labels
from lightning_taylor_prune.labels.space import Field, Labels, axes_of
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.graph import trace

Function = Callable[..., Any]

TOKENS = torch.randn(2, 5, 6)


class _Holder(nn.Module):
    """Calls a function on its parameters; it returns nothing, so that no output is locked."""

    def __init__(self, function: Function, operands: Sequence[Tensor], live: bool) -> None:
        super().__init__()
        self.function, self.live, self.count = function, live, len(operands)
        for i, operand in enumerate(operands):
            self.register_parameter(f"x{i}", nn.Parameter(operand.double()))

    def forward(self, one: Tensor) -> None:
        operands = [getattr(self, f"x{i}") for i in range(self.count)]
        results = self.function(*([x * one for x in operands] if self.live else operands))
        _ = [x.clone() for x in tensors(results)]  # a result that nothing reads says less


class Labelled:
    """An operator run on labels: fresh ones along every axis of every operand.

    Args:
        function: The operator.
        operands: Real tensors.
        live: The operands depend on the network's input, as activations do; otherwise they are weights.
    """

    def __init__(self, function: Function, operands: Sequence[Tensor], live: bool = False) -> None:
        self.function, self.operands = function, [x.double() for x in operands]
        holder = _Holder(function, operands, live)
        self.outcome: Propagation = propagate(
            run_on_labels([trace(holder, Call("", (torch.ones((), dtype=torch.double),)))])
        )
        self.results: Sequence[Labels] = self.outcome.results[0][-1 - len(tensors(function(*self.operands)))]

    def roots_of(self, operand: int) -> list[Field | None]:
        """Return the roots along each axis of an operand; ``None`` where it has size 1."""
        found: list[Field | None] = [None] * self.operands[operand].dim()
        for axis in self.outcome.axes:
            if axis.tensor == f"x{operand}":
                found[axis.dim] = self.outcome.roots[axis.start : axis.start + axis.size]
        return found

    def all_roots(self) -> list[Field]:
        """Return the roots along every axis of every operand."""
        return [roots for i in range(len(self.operands)) for roots in self.roots_of(i) if roots is not None]

    def whole(self) -> set[int]:
        """Return the components that are all of an axis: they cannot be removed either."""
        return {int(roots[0]) for roots in self.all_roots() if (roots == roots[0]).all()}

    def removable(self) -> list[int]:
        """Return the components that can be removed: not locked, exact, and not the whole of an axis."""
        banned = self.whole() | set(self.outcome.locked) | set(self.outcome.inexact.tolist())
        return sorted({int(root) for roots in self.all_roots() for root in roots} - banned)

    def without(self, root: int, zeroed: bool = False) -> list[Tensor]:
        """Return the operands without a component, or with it set to zero."""
        found = []
        for i, x in enumerate(self.operands):
            x = x.clone()
            for dim, roots in enumerate(self.roots_of(i)):
                if roots is not None and (gone := np.flatnonzero(roots == root)).size:
                    kept = torch.tensor(np.flatnonzero(roots != root))
                    x = x.index_fill(dim, torch.tensor(gone), 0) if zeroed else x.index_select(dim, kept)
            found.append(x)
        return found


def tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def check_movement(function: Function, shapes: Sequence[tuple[int, ...]]) -> None:
    """Compare labels with where the real operator takes elements from."""
    counts = np.cumsum([0, *(int(np.prod(s)) for s in shapes)]).tolist()
    numbered = [torch.arange(a + 1.0, a + 1.0 + np.prod(s)).reshape(s) for a, s in zip(counts, shapes, strict=False)]
    labelled = Labelled(function, [torch.zeros(s) for s in shapes])
    sources = [_labels_of_elements(labelled, i) for i in range(len(shapes))]
    known = set().union(*(labels for elements in sources for labels in elements))
    held = set(labelled.outcome.locked) | labelled.whole()
    for result, taken in zip(labelled.results, tensors(function(*numbered)), strict=True):
        assert result.shape == tuple(taken.shape)
        carried = [np.broadcast_to(labelled.outcome.roots[f], result.shape).ravel() for f in result.fields]
        for position, number in enumerate(taken.ravel().long().tolist()):
            if number == 0:  # padding has no source
                continue
            here = {int(field[position]) for field in carried}
            operand = int(np.searchsorted(counts, number) - 1)
            expected = sources[operand][number - 1 - counts[operand]]
            assert expected - held <= here, "a label got lost"
            assert here & known - held <= expected, "a label is where its element is not"


def _labels_of_elements(labelled: Labelled, operand: int) -> list[set[int]]:
    x, along = labelled.operands[operand], labelled.roots_of(operand)
    positions = np.stack(np.unravel_index(np.arange(x.numel()), tuple(x.shape)), axis=1)
    return [{int(r[p]) for r, p in zip(along, element, strict=True) if r is not None} for element in positions]


def check_removal(function: Function, operands: Sequence[Tensor], live: bool = False) -> int:
    """Cut every component out, one after another, and compare with zeroing it. Returns how many there were."""
    labelled = Labelled(function, operands, live)
    for root in labelled.removable():
        cut, zeroed = tensors(function(*labelled.without(root))), tensors(function(*labelled.without(root, True)))
        for result, actual, expected in zip(labelled.results, cut, zeroed, strict=False):
            for f in result.fields:
                for axis in range(f.ndim):
                    expected = _drop(expected, labelled.outcome.roots[f], axis, root)
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    return len(labelled.removable())


def _drop(tensor: Tensor, roots: Field, axis: int, root: int) -> Tensor:
    """Drop the positions on ``axis`` where the component stands at every position of the other axes."""
    if roots.shape[axis] == 1:
        return tensor
    others = tuple(a for a in range(roots.ndim) if a != axis)
    return tensor.index_select(axis, torch.tensor(np.flatnonzero(~(roots == root).all(axis=others))))


def check_dependence(function: Function, operands: Sequence[Tensor], live: bool = False) -> None:
    """Zero the operands at a label of the result: the result changes at that label's positions, and nowhere else."""
    labelled = Labelled(function, operands, live)
    before = function(*labelled.operands)
    for root in labelled.removable():
        differs = function(*labelled.without(root, zeroed=True)) != before
        for f in labelled.results[0].fields:
            (axis,) = axes_of(f)
            marked = labelled.outcome.roots[f].ravel() == root
            if marked.any():
                changed = differs.movedim(axis, 0).reshape(len(marked), -1).any(1)
                assert changed.tolist() == marked.tolist()


def channels_of(labelled: Labelled, axis: int = 1) -> set[int]:
    return set(labelled.roots_of(0)[axis].tolist())  # type: ignore[union-attr]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.double)
