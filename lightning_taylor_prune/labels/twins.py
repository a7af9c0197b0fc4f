"""A module that follows another one, as the average of its weights does, loses channels at the same positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import getitem

from torch.fx import Node

from lightning_taylor_prune.labels.space import Labels, LabelSpace, axes_of
from lightning_taylor_prune.modules.likeness import Twin, is_inside, twin_names
from lightning_taylor_prune.tracing.recorder import Trace


def tie_twins(space: LabelSpace, parameters: Mapping[str, Labels], twins: Sequence[Twin]) -> None:
    """Unite the labels of followers with those of their leaders, axis by axis and position by position."""
    for follower, leader in twin_names(parameters, twins):
        own, other = parameters[follower], parameters[leader]
        for field in own.fields if own.shape == other.shape else ():
            found = other.along(axes_of(field)[0])
            if found is None:
                space.lock(field, f"follows `{leader}`, which keeps its size")
            else:
                space.unite(field, found)


def used_tensors(traces: Sequence[Trace], twins: Sequence[Twin] = ()) -> set[str]:
    """Return the names of the parameters and buffers that traces use, and of the twins of these."""
    nodes = (node for trace in traces for node in trace.graph.nodes)
    used = {n.meta["tensor"] for n in nodes if n.op == "placeholder" and "tensor" in n.meta and n.users}
    tensors = traces[0].tensors
    same = {id(tensors[name]) for name in used}
    names = {name for name, tensor in tensors.items() if id(tensor) in same}
    pairs = [pair for pair in twin_names(tensors, twins) if not names.isdisjoint(pair)]
    return names.union(*pairs)


def lock_outputs_of_leaders(
    space: LabelSpace, traces: Sequence[Trace], labels_of: Sequence[Callable[[Node], object]], twins: Sequence[Twin]
) -> None:
    """Lock what comes out of a leader whose follower no trace runs: what is done with the follower's output is unknown.

    Args:
        space: The labels.
        traces: The traces.
        labels_of: For every trace, the labels of a node.
        twins: The twins.
    """
    used = used_tensors(traces)
    for twin in twins:
        if any(is_inside(name, twin.follower) for name in used):
            continue
        why = f"is an output of `{twin.leader}`, which `{twin.follower}` follows, and how that one is used was not seen"
        for trace, labels in zip(traces, labels_of, strict=True):
            for node in _outputs_of(trace, twin.leader):
                found = labels(node)
                for field in found.fields if isinstance(found, Labels) else ():
                    space.lock(field, why)


def _outputs_of(trace: Trace, module: str) -> Iterator[Node]:
    """Yield results of a module's operators that something else uses."""
    ends = set(trace.outputs)
    for node in trace.graph.nodes:
        if _runs_in(node, module) and (node in ends or not all(_runs_in(user, module) for user in node.users)):
            yield node


def _runs_in(node: Node, module: str) -> bool:
    """Whether an operator runs in a module; taking one of several results counts for the operator that has them."""
    if node.op != "call_function":
        return False
    source = node.args[0] if node.target is getitem else node
    return isinstance(source, Node) and is_inside(source.meta.get("module", ""), module)
