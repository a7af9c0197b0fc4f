"""What must change in modules, in addition to their tensors, when channels are removed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn

from lightning_taylor_prune.groups.shapes import SizeRef
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.modules.likeness import Twin, is_inside
from lightning_taylor_prune.modules.sizes import size_updates
from lightning_taylor_prune.modules.updates import AttributeUpdate


class SizeRule(NamedTuple):
    """An integer that a module holds, and the size in the network that it is proportional to.

    Attributes:
        module: Qualified name of the module.
        path: Where the module holds it, see :func:`~lightning_taylor_prune.modules.sizes.find_sizes`.
        original: Its value before anything was removed.
        follows: The size.
    """

    module: str
    path: str
    original: int
    follows: SizeRef

    def value(self, structure: Structure, counts: Sequence[int]) -> int | None:
        """Return the integer at these counts; ``None`` where that is no whole number."""
        return proportional(self.original, structure.size(self.follows, counts), structure.size(self.follows, None))


@dataclass(frozen=True)
class CodeChanges:
    """Integers in attributes and in code that must change when channels are removed.

    Attributes:
        size_rules: Integers in attributes of modules, for which no update is registered.
        rewritten: Names of the modules that get a generated `forward`, so that integers in their code can follow.
    """

    size_rules: tuple[SizeRule, ...] = ()
    rewritten: tuple[str, ...] = ()

    def with_rules(self, rules: Iterable[SizeRule]) -> CodeChanges:
        """Return these changes with further rules."""
        return replace(self, size_rules=(*self.size_rules, *rules))

    def with_rewritten(self, names: Iterable[str]) -> CodeChanges:
        """Return these changes with further modules to rewrite."""
        return replace(self, rewritten=tuple(dict.fromkeys((*self.rewritten, *names))))

    def shared_by(self, twins: Iterable[Twin]) -> CodeChanges:
        """Return these changes for what follows the modules concerned, too: its code may not have been run."""
        names, rules = dict.fromkeys(self.rewritten), {(rule.module, rule.path): rule for rule in self.size_rules}
        for twin in twins:
            at = len(twin.leader)
            for name in self.rewritten:
                if is_inside(name, twin.leader):
                    names.setdefault(twin.follower + name[at:])
            for rule in self.size_rules:
                if is_inside(rule.module, twin.leader):
                    other = rule._replace(module=twin.follower + rule.module[at:])
                    rules.setdefault((other.module, other.path), other)
        return CodeChanges(tuple(rules.values()), tuple(names))

    def inside(self, prefix: str) -> CodeChanges:
        """Return what changes in a submodule, by the names that modules have in it."""
        if not prefix:
            return self
        at = len(prefix) + 1
        rules = (rule._replace(module=rule.module[at:]) for rule in self.size_rules if is_inside(rule.module, prefix))
        return CodeChanges(tuple(rules), tuple(name[at:] for name in self.rewritten if is_inside(name, prefix)))

    def that_fit(self, structure: Structure) -> CodeChanges:
        """Return the changes whose sizes a structure has: those of arguments depend on the label rules in use."""
        return replace(self, size_rules=tuple(rule for rule in self.size_rules if structure.has(rule.follows)))

    def updates(self, root: nn.Module, structure: Structure, counts: Sequence[int]) -> list[AttributeUpdate]:
        """Return updates that set the integers for these counts; modules to rewrite must be rewritten already."""
        wanted: dict[str, dict[str, int]] = {}
        for rule in self.size_rules:
            value = rule.value(structure, counts)
            wanted.setdefault(rule.module, {})[rule.path] = rule.original if value is None else value
        return [u for name, sizes in wanted.items() for u in size_updates(root.get_submodule(name), sizes)]


def proportional(value: int, size: int, original: int) -> int | None:
    """Return ``value * size / original`` where that is a whole number."""
    quotient, rest = divmod(value * size, original)
    return None if rest else quotient
