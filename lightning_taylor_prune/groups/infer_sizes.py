"""Infer which integers that modules hold must change when channels are removed.

The dry run names the line that fails and the modules that were running. An integer of one of these modules that equals
a nearby size, or is a multiple or fraction of it, is made to follow that size; or else an integer of a child module
that equals it. The inference is accepted if the dry run then gets further.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from lightning_taylor_prune.groups.call_places import CallPlace
from lightning_taylor_prune.groups.changes import SizeRule, proportional
from lightning_taylor_prune.groups.divergence import Divergence
from lightning_taylor_prune.groups.shapes import ArgumentRef, TensorRef, TracedSize, is_multiple
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.groups.trial import Trial
from lightning_taylor_prune.labels.places import AxisRef
from lightning_taylor_prune.modules.reads import recording_reads
from lightning_taylor_prune.modules.rewrite import is_rewritten, own_class, rewritten
from lightning_taylor_prune.modules.sizes import find_sizes, has_size, holder_of, size_at

_OPERATORS_BACK, _OPERATORS_AHEAD = 40, 10

_DEPTH = 3
"""How many integers are changed together, at most, for the code to get past one operator."""

_MOST_STEPS, _MOST_STEPS_IN_CODE = 48, 12
"""How many sets of integers are gone on from, at most, of those that modules hold and of those in their code. What is
found is found in the first three, as a rule; of the code, mostly no more is asked than whether rewriting would help."""


def find_size_rules(trial: Trial, divergence: Divergence, most_steps: int = _MOST_STEPS) -> tuple[SizeRule, ...]:
    """Return rules with which the network's code gets past an operator at which it failed; ``()`` if there are none."""
    return _search(trial, divergence, most_steps)


def evidence_of(trial: Trial, stuck: Divergence) -> Hashable:
    """Return all that the search for rules goes by: where it found none, it finds none where that is the same."""
    sizes = tuple((original, now) for _, original, now in changed_sizes(trial, stuck))
    return stuck.site, stuck.message, stuck.lines, sizes, trial.groups.analysis.changes


def find_rewriting(trial: Trial, divergence: Divergence) -> tuple[tuple[str, ...], tuple[SizeRule, ...]]:
    """Return modules to rewrite, and rules for integers in their code, with which it gets further; ``(), ()`` if none.

    The innermost running module that can be rewritten is chosen, with all modules of its class.
    """
    for module in divergence.modules:
        names = tuple(name for name, other in trial.root.named_modules() if own_class(other) is own_class(module))
        with rewritten(trial.root, names):
            again = trial.once_more()
            rules = find_size_rules(again, divergence, _MOST_STEPS_IN_CODE) if is_rewritten(module) else ()
            if rules:
                changed = {rule.module for rule in rules}
                return tuple(name for name in names if name in changed), rules
    return (), ()


class _Step(NamedTuple):
    """Rules with which the network's code only reaches another line before the same operator.

    Attributes:
        rules: The rules.
        stuck: Where the code fails with them.
        seen: The lines that it has reached so far.
    """

    rules: tuple[SizeRule, ...]
    stuck: Divergence
    seen: frozenset[str]


def _search(trial: Trial, stuck: Divergence, most_steps: int) -> tuple[SizeRule, ...]:
    """Try rules, the likeliest first; then go on from those that reach another line, from each as far as it leads.

    What fails at a size that is wrong reaches a line of its own with every integer: the number of steps is bounded, as
    there are more ways to choose several integers than anybody wants to wait for.
    """
    steps = [_Step((), stuck, frozenset({_line(stuck)}))]
    begun: set[frozenset[SizeRule]] = set()
    while steps and len(begun) < most_steps:
        step = steps.pop()
        if frozenset(step.rules) in begun:
            continue  # the same rules were chosen in another order
        begun.add(frozenset(step.rules))
        further: list[_Step] = []
        if found := _passes(trial, step, further):
            return found
        if len(step.seen) < _DEPTH:
            steps.extend(reversed(further))
    return ()


def _passes(trial: Trial, step: _Step, further: list[_Step]) -> tuple[SizeRule, ...]:
    """Return rules with which the code gets past the operator, ``()`` if none; adds the steps to go on from."""
    chosen, stuck, seen = step
    tried: set[tuple[str, str, int | None]] = set()
    for rule in _candidates(trial, stuck, chosen):
        if (effect := (rule.module, rule.path, trial.value(rule))) in tried:
            continue  # a rule with another size gives the same number, and did not help
        tried.add(effect)
        alone = trial.run((*chosen, rule))
        if alone == stuck:
            continue
        for rules in _with_alike(trial, rule, chosen):
            outcome = alone if len(rules) == 1 else trial.run((*chosen, *rules))
            if outcome is None or outcome.site > stuck.site:
                return (*chosen, *rules)
            if outcome.site == stuck.site and (line := _line(outcome)) not in seen:
                further.append(_Step((*chosen, *rules), outcome, seen | {line}))
    return ()


def _line(divergence: Divergence) -> str:
    return f"{divergence.lines[:1]} {divergence.message}"


def _candidates(trial: Trial, stuck: Divergence, chosen: Sequence[SizeRule]) -> Iterator[SizeRule]:
    """Yield rules for integers that running modules hold and read: equal to a size that changed, then proportional.

    Last come integers that the code reads from a child which is not running (`self.block.hidden_size`), if equal.
    """
    names = {id(module): name for name, module in trial.root.named_modules()}
    taken = {(r.module, r.path) for r in (*trial.groups.analysis.changes.size_rules, *chosen)}
    changed = list(changed_sizes(trial, stuck))
    children = dict.fromkeys(child for module in stuck.modules for child in module.children())
    modules = [m for m in dict.fromkeys((*stuck.modules, *children)) if id(m) in names]
    held = [(m, path, value) for m in modules for path, value in find_sizes(m).items() if value >= 2]
    held = [(m, path, value) for m, path, value in held if (names[id(m)], path) not in taken]
    with recording_reads((m, path) for m, path, _ in held) as read:
        trial.run(chosen, afresh=True)
    held = [(m, path, value) for m, path, value in held if holder_of(m, path) in read]
    running, idle = ([h for h in held if (h[0] in stuck.modules) is there] for there in (True, False))
    for some, exactly in ((running, True), (running, False), (idle, True)):
        for module, path, value in some:
            for ref, original, now in changed:
                fits = value == original if exactly else _in_proportion(value, original, now)
                if fits:
                    yield SizeRule(names[id(module)], path, value, ref)


def _in_proportion(value: int, original: int, now: int) -> bool:
    related = value != original and (is_multiple(value, original) or is_multiple(original, value))
    return related and proportional(value, now, original) is not None


def changed_sizes(trial: Trial, stuck: Divergence) -> Iterator[tuple[TracedSize, int, int]]:
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


def _sizes_of(structure: Structure, trace: int, op: int) -> Iterator[TracedSize]:
    for number in range(len(structure.expectations[trace].get(op, ()))):
        yield ArgumentRef(trace, op, number)
    yield from counted_axes(structure, trace, op)


def counted_axes(structure: Structure, trace: int, op: int) -> Iterator[AxisRef]:
    """Yield the axes of an operator's results whose positions can be removed."""
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
    """Yield the rule for other modules of the class: each uses the size at the same place of its own run."""
    structure, module = trial.structure, trial.root.get_submodule(rule.module)
    if isinstance(rule.follows, TensorRef):
        return
    place = CallPlace.of(structure.propagation.traces[rule.follows.trace], rule.module, rule.follows.op)
    if place is None:
        return
    taken = {(r.module, r.path) for r in (*trial.groups.analysis.changes.size_rules, *chosen)}
    for name, other in trial.root.named_modules():
        if other is module or own_class(other) is not own_class(module) or (name, rule.path) in taken:
            continue
        ref = place.size_in(structure, name, rule.follows)
        if ref is not None and has_size(other, rule.path):
            yield SizeRule(name, rule.path, size_at(other, rule.path), ref)
