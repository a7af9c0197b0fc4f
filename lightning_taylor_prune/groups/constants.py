"""Numbers that code computes with, and constants that it makes: whether they are the same at other shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lightning_taylor_prune.labels.rules.registry import describe_operator
from lightning_taylor_prune.tracing.arrays import without_modes
from lightning_taylor_prune.tracing.values import is_fake


def changed_number(node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Say which number in the arithmetic of an operator depends on how many channels there are; ``None`` if none does.

    The values would then change, not only the shapes.

    Args:
        node: The operator as it was traced.
        args: Its positional arguments now.
        kwargs: Its keyword arguments now.
    """
    for name in operands(node.target):
        before, now = (argument(name, *given) for given in ((node.args, node.kwargs), (args, kwargs)))
        if isinstance(before, Node) and "constant" in before.meta and not same_numbers(before.meta["val"], now):
            return (
                f"the network's code computes with a constant that follows them: {shown(now)} where it was "
                f"{shown(before.meta['val'])} ({describe_operator(node)})"
            )
        if isinstance(now, (int, float)) and isinstance(before, (int, float)) and now != before:
            return (
                f"the network's code computes with a size: expected the number {before} after pruning, got {now} "
                f"({describe_operator(node)})"
            )
    return None


def same_numbers(before: Any, now: Any) -> bool:
    """Whether constants hold the same numbers; of those that differ in shape, whether one number fills both."""
    if not isinstance(now, Tensor) or before is now or is_fake(now) or is_fake(before):
        return True
    with without_modes():
        if before.shape == now.shape:
            as_now = before.to(now.dtype)  # code may have cast what it stores since (anchors of a detector, say)
            return bool(torch.allclose(as_now, now, rtol=0, atol=0, equal_nan=True))
        uniform = [x.numel() > 0 and bool((x == x.reshape(-1)[0]).all()) for x in (before, now)]
        return not all(uniform) or bool(before.reshape(-1)[0] == now.reshape(-1)[0])


def shown(tensor: Tensor) -> str:
    """Return the number that a constant holds, or its shape."""
    with without_modes():
        return str(tensor.item()) if tensor.numel() == 1 else f"a table of shape {list(tensor.shape)}"


@cache
def operands(func: Any) -> tuple[tuple[int, str], ...]:
    """Return position and name of the arguments that may be numbers in the arithmetic, not sizes or axes."""
    arguments = func._schema.arguments if hasattr(func, "_schema") else ()
    computed = ("Tensor", "number", "float")
    return tuple(
        (i, a.name) for i, a in enumerate(arguments) if str(a.type).removeprefix("Optional[").startswith(computed)
    )


def argument(place: tuple[int, str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return an argument by its place, as :func:`operands` gives it."""
    position, name = place
    return args[position] if position < len(args) else kwargs.get(name)
