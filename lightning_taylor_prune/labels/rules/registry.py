"""The registry of label rules: operator -> functions that compute the labels of its results.

A rule is called as the operator is, with a :class:`~lightning_taylor_prune.labels.rules.context.RuleContext` before the
operator's own arguments and :class:`~lightning_taylor_prune.labels.space.Labels` in place of tensors, and returns the
labels of the result. It unites labels that the operator ties together, and locks labels that it cannot follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.fx import Node

Rule = Callable[..., Any]

R = TypeVar("R", bound=Rule)


@dataclass(frozen=True)
class OperatorRules:
    """The rules of an operator, in the order in which they are tried.

    Attributes:
        rule: The first choice.
        fallbacks: Tried one after another where the network's own code contradicts the choice before.
        after_ties: Tried last, where tying two axes did not help either. Then the operator's channels are locked.
    """

    rule: Rule
    fallbacks: tuple[Rule, ...] = ()
    after_ties: tuple[Rule, ...] = ()

    @property
    def in_order(self) -> tuple[Rule, ...]:
        """All rules, the first choice first."""
        return (self.rule, *self.fallbacks, *self.after_ties)


_RULES: dict[str, OperatorRules] = {}


def register_rule(*operators: str, fallbacks: Sequence[Rule] = (), after_ties: Sequence[Rule] = ()) -> Callable[[R], R]:
    """Register a label rule for operators.

    Args:
        operators: Names without overload, such as ``"aten.conv2d"`` or ``"my_library.my_op"``. An in-place variant
            (``aten.relu_``) uses the rule of the plain operator.
        fallbacks: Further rules, tried in this order where the network's own code contradicts the one before; after
            the last one, the channels that the operator uses are locked.
        after_ties: Rules that are only tried where it does not help to tie two axes whose sizes the code confuses.

    Returns:
        A decorator. The rule gets a :class:`~lightning_taylor_prune.labels.rules.context.RuleContext` and then the
        operator's own arguments.

    Raises:
        ValueError: An operator has a rule already.

    Example:
        >>> @register_rule("my_library.scale_channels")
        ... def scale_channels(ctx, x, gains):
        ...     ctx.tie(x.along(1), gains.along(0).reshape(1, -1, 1, 1), "is scaled by gains that cannot shrink")
        ...     return x.computed()
    """

    def decorate(rule: R) -> R:
        for name in operators:
            if name in _RULES:
                raise ValueError(f"Operator `{name}` has a label rule already: {_RULES[name].rule.__name__}.")
            _RULES[name] = OperatorRules(rule, tuple(fallbacks), tuple(after_ties))
        return rule

    return decorate


def operator_name(target: Any) -> str:
    """Return ``"aten.relu"`` for ``aten.relu_.default``: namespace and name, no overload, no in-place mark."""
    packet = getattr(target, "overloadpacket", None)
    name = str(packet if packet is not None else target)
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def find_rules(target: Any) -> OperatorRules | None:
    """Return the rules of an operator; operators that torch tags as pointwise share one rule."""
    found = _RULES.get(operator_name(target))
    if found is None and torch.Tag.pointwise in getattr(target, "tags", ()):
        return _RULES["aten.add"]
    return found


def describe_operator(node: Node) -> str:
    """Return the name of an operator with the line of code (or else the module) that calls it, for messages."""
    where = node.meta.get("source") or (f"module `{name}`" if (name := node.meta.get("module")) else "")
    return f"{operator_name(node.target)}{', ' + where if where else ''}"
