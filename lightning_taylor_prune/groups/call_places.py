"""The place of an operator's call within a module's run, and the same place in other modules of its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from lightning_taylor_prune.groups.shapes import TracedSize
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.labels.places import AxisRef, Site
from lightning_taylor_prune.modules.sizes import find_sizes
from lightning_taylor_prune.tracing.recorder import Trace


@dataclass(frozen=True)
class CallPlace:
    """Identifies a call of an operator while a module runs; in all modules of a class it stands for the same code.

    Attributes:
        target: The operator.
        source: File and line that call it.
        ordinal: How many calls of the operator on that line come before it in the module's run.
    """

    target: Any
    source: str
    ordinal: int

    @staticmethod
    def of(trace: Trace, module: str, op: int) -> CallPlace | None:
        """Return the place of an operator in a module's run, if it runs there."""
        target, source = _target_and_source(trace.ops[op])
        alike = _positions(trace, module, target, source)
        return CallPlace(target, source, alike.index(op)) if op in alike else None

    def position_in(self, trace: Trace, module: str) -> int | None:
        """Return the position of the operator at this place of another module's run, if there is one."""
        alike = _positions(trace, module, self.target, self.source)
        return alike[self.ordinal] if self.ordinal < len(alike) else None

    def size_in(self, structure: Structure, module: str, ref: TracedSize) -> TracedSize | None:
        """Return the size at this place of another module's run that corresponds to a size, if there is one."""
        position = self.position_in(structure.propagation.traces[ref.trace], module)
        if position is None:
            return None
        found = ref._replace(op=position)
        if not isinstance(found, AxisRef):
            return found if structure.has(found) else None
        results = structure.results[found.trace][found.op]
        return found if found.number < len(results) and found.axis < len(results[found.number].shape) else None


def sites_on_the_line_of(traces: Sequence[Trace], site: Site) -> set[Site]:
    """Return every call of the same operator on the same line, in whatever module and trace."""
    wanted = _target_and_source(traces[site.trace].ops[site.op])
    return {Site(number, op) for number, trace in enumerate(traces) for op in trace.calls_by_line.get(wanted, ())}


def sites_alike(root: nn.Module, traces: Sequence[Trace], site: Site) -> set[Site]:
    """Return the calls on the line of one of which the same is known, see :func:`evidence_at`."""
    wanted = evidence_at(root, traces, site)
    return {other for other in sites_on_the_line_of(traces, site) if evidence_at(root, traces, other) == wanted}


def evidence_at(root: nn.Module, traces: Sequence[Trace], site: Site) -> tuple[Any, ...]:
    """Return what may tell one call of an operator on a line from another: shapes, numbers, what its module holds.

    One stage of a network may be contradicted for what the next one, which runs the same line, does right.
    """
    node = traces[site.trace].ops[site.op]
    numbers = tuple(n for n in tree_leaves((node.args, node.kwargs)) if isinstance(n, (int, float)))
    operands = [n.meta["val"] for n in node.all_input_nodes]
    shapes = tuple(tuple(v.shape) if isinstance(v, Tensor) else () for v in operands)
    module = root.get_submodule(node.meta["module"])
    return numbers, shapes, tuple(node.meta["shapes"]), type(module), tuple(sorted(find_sizes(module).items()))


def _target_and_source(node: Node) -> tuple[Any, str]:
    return node.target, node.meta["source"]


def _positions(trace: Trace, module: str, target: Any, source: str) -> list[int]:
    """Return the positions of the calls of one operator on one line in the run of a module or below it."""
    alike = trace.calls_by_line.get((target, source), ())
    return [op for op in alike if _is_inside(trace, trace.ops[op].meta["module"], module)]


def _is_inside(trace: Trace, name: str, module: str) -> bool:
    """Whether a module is another one or lies below it, by any of their names."""
    if not module:
        return True
    holders = trace.names_of(module)
    return any(n == holder or n.startswith(f"{holder}.") for n in trace.names_of(name) for holder in holders)
