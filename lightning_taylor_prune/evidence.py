"""Find out which integers that modules hold must change when channels leave, from what the network's code does then.

The dry run names the line that fails and the modules that were running. An integer of one of them that equals a size
there, or is a multiple or fraction of it, is made to follow that size, or else one of a child that equals it; it is
believed if the dry run then gets further.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from lightning_taylor_prune.interpret import AxisRef, Tie
from lightning_taylor_prune.labels import Field
from lightning_taylor_prune.modules import find_sizes, has_size, holder_of, noting_reads, size_at
from lightning_taylor_prune.plan import Cut
from lightning_taylor_prune.rewrite import is_rewritten, rewritten
from lightning_taylor_prune.structure import Alive, ArgumentRef, SizeRef, SizeRule, Structure, proportional
from lightning_taylor_prune.verify import Divergence, verify

_OPERATORS_BACK, _OPERATORS_AHEAD = 40, 10
_DEPTH = 3
"""How many integers may have to change together before the code gets past one operator."""


@dataclass(frozen=True)
class Trial:
    """A cut that the network's code is tried with."""

    root: nn.Module
    structure: Structure
    alive: Alive
    cuts: Sequence[Cut]

    @cached_property
    def counts(self) -> Sequence[int]:
        """Every registered count after the cut."""
        return self.structure.counts(self.alive)

    def value(self, rule: SizeRule) -> int | None:
        """Return what the cut sets a rule's integer to."""
        size, original = (self.structure.size(rule.follows, c) for c in (self.counts, None))
        return proportional(rule.original, size, original)

    def run(self, rules: Sequence[SizeRule]) -> Divergence | None:
        """Verify the cut with more integers made to follow sizes; the structure comes out as it was."""
        before = self.structure.size_rules
        self.structure.size_rules = (*before, *rules)
        try:
            return verify(self.root, self.structure, self.alive, self.cuts)
        finally:
            self.structure.size_rules = before


def find_size_rules(trial: Trial, divergence: Divergence) -> tuple[SizeRule, ...]:
    """Return rules that let the network's code get past an operator at which it failed; none if there are none."""
    return _search(trial, divergence, (), frozenset({_line(divergence)}), _DEPTH)


def find_rewriting(trial: Trial, divergence: Divergence) -> tuple[tuple[str, ...], tuple[SizeRule, ...]]:
    """Return the modules to rewrite, and rules for integers in their code, that let it get further; else nothing.

    The innermost running module that can be rewritten is, with all of its class.
    """
    for module in divergence.modules:
        names = tuple(name for name, other in trial.root.named_modules() if type(other) is type(module))
        with rewritten(trial.root, names):
            rules = find_size_rules(trial, divergence) if is_rewritten(module) else ()
            if rules:
                changed = {rule.module for rule in rules}
                return tuple(name for name in names if name in changed), rules
    return (), ()


def _search(
    trial: Trial, stuck: Divergence, chosen: tuple[SizeRule, ...], seen: frozenset[str], depth: int
) -> tuple[SizeRule, ...]:
    """Try rules, likeliest first; go on from one that only reaches another line before the same operator."""
    further: list[tuple[tuple[SizeRule, ...], Divergence]] = []
    tried: set[tuple[str, str, int | None]] = set()
    for rule in _candidates(trial, stuck, chosen):
        if (effect := (rule.module, rule.path, trial.value(rule))) in tried:
            continue  # another size has set it to this number, and the code got no further
        tried.add(effect)
        alone = trial.run((*chosen, rule))
        if alone == stuck:
            continue
        for rules in _with_alike(trial, rule, chosen):
            outcome = alone if len(rules) == 1 else trial.run((*chosen, *rules))
            if outcome is None or outcome.site > stuck.site:
                return (*chosen, *rules)
            if outcome.site == stuck.site and _line(outcome) not in seen:
                further.append(((*chosen, *rules), outcome))
    for rules, outcome in further if depth > 1 else ():
        if found := _search(trial, outcome, rules, seen | {_line(outcome)}, depth - 1):
            return found
    return ()


def _line(divergence: Divergence) -> str:
    return f"{divergence.lines[:1]} {divergence.message}"


def _candidates(trial: Trial, stuck: Divergence, chosen: Sequence[SizeRule]) -> Iterator[SizeRule]:
    """Yield rules for integers that running modules hold and read: equal to a size that changed, then proportional.

    At last for those that code reads of a child which is not running (`self.block.hidden_size`), where they are equal.
    """
    names = {id(module): name for name, module in trial.root.named_modules()}
    taken = {(r.module, r.path) for r in (*trial.structure.size_rules, *chosen)}
    changed = list(_changed_sizes(trial, stuck))
    children = dict.fromkeys(child for module in stuck.modules for child in module.children())
    modules = [m for m in dict.fromkeys((*stuck.modules, *children)) if id(m) in names]
    held = [(m, path, value) for m in modules for path, value in find_sizes(m).items() if value >= 2]
    held = [(m, path, value) for m, path, value in held if (names[id(m)], path) not in taken]
    with noting_reads((m, path) for m, path, _ in held) as read:
        trial.run(chosen)
    held = [(m, path, value) for m, path, value in held if holder_of(m, path) in read]
    running, idle = ([h for h in held if (h[0] in stuck.modules) is there] for there in (True, False))
    for some, exactly in ((running, True), (running, False), (idle, True)):
        for module, path, value in some:
            for ref, original, now in changed:
                fits = value == original if exactly else _in_proportion(value, original, now)
                if fits:
                    yield SizeRule(names[id(module)], path, value, ref)


def _in_proportion(value: int, original: int, now: int) -> bool:
    related = value != original and (value % original == 0 or original % value == 0)
    return related and proportional(value, now, original) is not None


def _changed_sizes(trial: Trial, stuck: Divergence) -> Iterator[tuple[SizeRef, int, int]]:
    """Yield sizes near an operator that the cut changes: its arguments and results, then those around it."""
    structure, counts = trial.structure, trial.counts
    trace, op = stuck.site
    last = len(structure.results[trace]) - 1
    around = [*range(op, max(op - _OPERATORS_BACK, -1), -1), *range(op + 1, min(op + _OPERATORS_AHEAD, last) + 1)]
    seen: set[tuple[int, int]] = set()
    for index in around:
        for ref in _sizes_of(structure, trace, index):
            original, now = structure.size(ref, None), structure.size(ref, counts)
            if original != now and (original, now) not in seen:
                seen.add((original, now))
                yield ref, original, now


def _sizes_of(structure: Structure, trace: int, op: int) -> Iterator[SizeRef]:
    for number in range(len(structure.expectations[trace].get(op, ()))):
        yield ArgumentRef(trace, op, number)
    yield from _axes_of(structure, trace, op)


def _axes_of(structure: Structure, trace: int, op: int) -> Iterator[AxisRef]:
    for number, rule in enumerate(structure.results[trace][op]):
        for axis, _ in rule.counted:
            yield AxisRef(trace, op, number, axis)


def _with_alike(trial: Trial, rule: SizeRule, chosen: Sequence[SizeRule]) -> Iterator[tuple[SizeRule, ...]]:
    """Yield a rule with the same one for all modules of its class, then the rule alone."""
    alike = tuple(_alike(trial, rule, chosen))
    if alike:
        yield (rule, *alike)
    yield (rule,)


def _alike(trial: Trial, rule: SizeRule, chosen: Sequence[SizeRule]) -> Iterator[SizeRule]:
    """Yield the rule for other modules of the class: each follows the size at the same place of its own run."""
    module = trial.root.get_submodule(rule.module)
    place = _place(trial.structure, rule.module, rule.follows)
    taken = {(r.module, r.path) for r in (*trial.structure.size_rules, *chosen)}
    for name, other in trial.root.named_modules():
        if other is module or type(other) is not type(module) or (name, rule.path) in taken:
            continue
        ref = _at_place(trial.structure, name, rule.follows, place)
        if ref is not None and has_size(other, rule.path):
            yield SizeRule(name, rule.path, size_at(other, rule.path), ref)


def _place(structure: Structure, module: str, ref: SizeRef) -> tuple[object, object, int]:
    """Return operator, source line and ordinal among the like of an operator within a module's run."""
    node = structure.interpretation.traces[ref.trace].ops[ref.op]
    like = _inside(structure, module, ref.trace, node.target, node.meta["source"])
    return node.target, node.meta["source"], like.index(ref.op) if ref.op in like else -1


def _at_place(structure: Structure, module: str, ref: SizeRef, place: tuple[object, object, int]) -> SizeRef | None:
    target, source, ordinal = place
    like = _inside(structure, module, ref.trace, target, source)
    if ordinal < 0 or ordinal >= len(like):
        return None
    found = ref._replace(op=like[ordinal])
    results = structure.results[found.trace][found.op]
    if isinstance(found, ArgumentRef):
        return found if found.number < len(structure.expectations[found.trace].get(found.op, ())) else None
    same_rank = found.number < len(results) and found.axis < len(results[found.number].shape)
    return found if same_rank else None


def _inside(structure: Structure, module: str, trace: int, target: object, source: object) -> list[int]:
    """Return the operators of one kind and source line that run in a module or below it."""
    ops = structure.interpretation.traces[trace].ops
    return [
        i
        for i, node in enumerate(ops)
        if node.target is target
        and node.meta["source"] == source
        and (node.meta["module"] == module or node.meta["module"].startswith(f"{module}.") or not module)
    ]


# --- sizes that the code takes from another axis ------------------------------------------------------------------


def find_ties(trial: Trial, divergence: Divergence) -> Iterator[tuple[Tie, ...]]:
    """Yield ties of axes that may explain why the network's code failed at an operator, the likeliest first.

    The code computes a size from another axis than the one it should fit (``reshape(batch, length, x.shape[-1])``):
    the positions of both then have to leave together. Each tie comes with the same one in all modules of the class.
    """
    structure, (trace, op) = trial.structure, divergence.site
    counts = trial.counts
    lasting = structure.interpretation.traces[trace].ops
    producers = {node: i for i, node in enumerate(lasting)}
    operands = [producers[n] for n in lasting[op].all_input_nodes if n in producers]
    own = [ref for i in (op, *operands) for ref in _axes_of(structure, trace, i)]
    others = [ref for ref, _, _ in _changed_sizes(trial, divergence) if isinstance(ref, AxisRef)]
    pairs = [
        Tie(axis, other)
        for axis in own
        for other in others
        if structure.size(axis, None) % structure.size(other, None) == 0 and _labels_differ(structure, axis, other)
    ]
    ranked = sorted(pairs, key=lambda tie: structure.size(tie.follows, counts) not in divergence.numbers)
    for tie in ranked:
        if alike := tuple(_alike_ties(trial, divergence, tie)):
            yield (tie, *alike)
        yield (tie,)


def leaves_a_choice(structure: Structure, tie: Tie) -> bool:
    """Whether some of the tied channels can still leave while others stay."""
    roots = np.unique(_roots_along(structure, tie.follows))
    return len(roots) > 1 and not any(root in structure.interpretation.locked for root in roots.tolist())


def _labels_differ(structure: Structure, axis: AxisRef, other: AxisRef) -> bool:
    lines = [_roots_along(structure, ref) for ref in (axis, other)]
    return len(lines[0]) != len(lines[1]) or bool((lines[0] != lines[1]).any())


def _roots_along(structure: Structure, ref: AxisRef) -> Field:
    interpretation = structure.interpretation
    labels = interpretation.results[ref.trace][ref.op][ref.number].along(ref.axis)
    if labels is None:
        return np.empty(0, dtype=np.int64)
    return interpretation.roots[np.moveaxis(labels, ref.axis, -1).reshape(-1, labels.shape[ref.axis])[0]]


def _alike_ties(trial: Trial, divergence: Divergence, tie: Tie) -> Iterator[Tie]:
    """Yield the tie at the same places of other modules of the innermost class whose run holds both."""
    names = {id(module): name for name, module in trial.root.named_modules()}
    structure = trial.structure
    for module in divergence.modules:
        name = names.get(id(module), "")
        places = [_place(structure, name, ref) for ref in tie]
        if all(place[2] >= 0 for place in places):
            break
    else:
        return
    for other_name, other in trial.root.named_modules():
        if other is module or type(other) is not type(module):
            continue
        refs = [_at_place(structure, other_name, ref, place) for ref, place in zip(tie, places, strict=True)]
        if isinstance(refs[0], AxisRef) and isinstance(refs[1], AxisRef):
            sizes = [structure.size(ref, None) for ref in refs if ref is not None]
            if sizes[0] % sizes[1] == 0:
                yield Tie(refs[0], refs[1])
