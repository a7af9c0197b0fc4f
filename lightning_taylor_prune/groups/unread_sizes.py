"""Integers that modules hold of their widths though no traced code reads them: a method that runs later may.

A block that is made one convolution for deployment, say, builds it from ``self.channels``, which its ``forward`` never
reads. No trial cut can contradict such an integer, so three things together are the evidence: its name says that it
counts channels, the traced code does not read it, and all axes of its length in the module are the same units.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd

from lightning_taylor_prune.groups.changes import SizeRule
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.shapes import TensorRef
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.groups.trial import Trial
from lightning_taylor_prune.labels.places import Axis
from lightning_taylor_prune.labels.space import Field
from lightning_taylor_prune.modules.reads import recording_reads
from lightning_taylor_prune.modules.sizes import find_sizes, holder_of, plain_objects
from lightning_taylor_prune.modules.updates import has_update


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_INTO, _OUT_OF = _words("cin in inp inplanes input"), _words("cout out oup outplanes output")
_WIDTHS = _words(
    "c ch chan channel channels chans chs d dim dims embed embedding expanded feat feats feature features filter "
    "filters hid hidden inner neurons nf planes units width widths"
) | (_INTO | _OUT_OF)
_GROUPS = _words("group groups")
_OTHERWISE = _words(  # "num_hidden_layers" and "feature_stride" count something else
    "axis batch bit bits block blocks class classes depth dilation epoch epochs factor grid head heads height idx "
    "image img index iter iters kernel layer layers len length level levels mode pad padding patch patches pos "
    "position positions queries query rank ratio resolution scale seed seq shape spatial stage stages step steps "
    "stride strides token tokens vocab window"
)


def unread_size_rules(model: nn.Module, groups: ChannelGroups) -> tuple[SizeRule, ...]:
    """Return rules for integers that name the width of a module and that nothing read while the network was traced.

    Args:
        model: The network, with nothing removed from it yet since the groups were found.
        groups: Its groups, which its code does not contradict.
    """
    rules = list(_Widths(groups).rules(model))
    if not rules:
        return ()
    holders = [(model.get_submodule(rule.module), rule.path) for rule in rules]
    with recording_reads(holders) as read:
        Trial(model, groups, groups.plan({})).run(afresh=True)
    return tuple(r for r, held in zip(rules, holders, strict=True) if holder_of(*held) not in read)


def words_of(path: str) -> frozenset[str]:
    """Return the words of an attribute's name: ``in`` and ``chs`` of ``"in_chs"``, ``"inChs"`` and ``"in_chs.0"``."""
    return frozenset(word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", path.partition(".")[0]))


class _Widths:
    """Finds the axis that an integer of a module stands for.

    Args:
        groups: The groups of the network.
    """

    def __init__(self, groups: ChannelGroups) -> None:
        self._structure = groups.structure
        self._groups = groups
        self._taken = {(rule.module, rule.path) for rule in groups.analysis.changes.size_rules}
        self._numbers = _axes_of_tensors(self._structure)
        self._below: dict[str, list[tuple[int, list[int]]]] = {}
        for tensor, numbers in self._numbers.items():
            parts = tensor.split(".")
            for depth in range(len(parts)):
                self._below.setdefault(".".join(parts[:depth]), []).append((len(parts) - depth, numbers))

    def rules(self, model: nn.Module) -> Iterator[SizeRule]:
        """Yield a rule for every integer whose name and value fit an axis of its module that can shrink."""
        for name, module in model.named_modules():
            if has_update(module):
                continue  # a registered update says what follows; a kernel size may well equal the width
            settings = plain_objects(module)
            for path, value in find_sizes(module).items():
                if value < 2 or (name, path) in self._taken or path.partition(".")[0] in settings:
                    continue
                axis = self._axis_for(name, module, path, value)
                if axis is not None:
                    yield SizeRule(name, path, value, TensorRef(axis.tensor, axis.dim))

    def _axis_for(self, name: str, module: nn.Module, path: str, value: int) -> Axis | None:
        words = words_of(path)
        grouped = self._grouped(name, module) if words & (_GROUPS | _INTO) else {}
        if words & _GROUPS and grouped:
            return self._agreed([n for n, groups in grouped.items() if groups == value], len(grouped))
        if not words & (_WIDTHS | _GROUPS) or words & _OTHERWISE:
            return None
        below = self._below.get(name, ())
        for deepest in (math.inf, 2):  # of the whole subtree, then only of the module's own layers
            inside = [n for depth, found in below if depth <= deepest for n in found if self._axis(n).size == value]
            if inside and (axis := self._agreed(inside) or self._agreed(self._on_side(inside, words))):
                return axis
        return self._agreed([n for n, groups in grouped.items() if groups == value]) if words & _INTO else None

    def _axis(self, number: int) -> Axis:
        return self._structure.propagation.axes[number]

    def _on_side(self, numbers: Sequence[int], words: Collection[str]) -> list[int]:
        """Choose the axes that read, or those that do not, where the name says which."""
        into, out_of = bool(_INTO & frozenset(words)), bool(_OUT_OF & frozenset(words))
        if into == out_of:
            return []
        return [n for n in numbers if (self._groups.role_of(n) == "reader") == into]

    def _grouped(self, name: str, module: nn.Module) -> dict[int, int]:
        """Return the first axes of the weights of a module's grouped convolutions, and how many groups each has."""
        convs = {n: m for n, m in module.named_modules(prefix=name) if isinstance(m, _ConvNd) and m.groups > 1}
        numbers = [(n, conv.groups) for at, conv in convs.items() for n in self._numbers.get(f"{at}.weight", ())]
        return {number: groups for number, groups in numbers if self._axis(number).dim == 0}

    def _agreed(self, numbers: Sequence[int], expected: int = 0) -> Axis | None:
        """Return the first of some axes if all of them (as many as expected) carry the same units, none locked."""
        lines: list[Field] = [self._structure.roots_on(number) for number in numbers]
        if len(lines) < max(expected, 1) or (self._groups.units_of(lines[0]) < 0).any():
            return None
        alike = all(len(line) == len(lines[0]) and (line == lines[0]).all() for line in lines)
        return self._axis(numbers[0]) if alike and len(np.unique(lines[0])) > 1 else None


def _axes_of_tensors(structure: Structure) -> dict[str, list[int]]:
    """Return the numbers of the axes of every parameter and buffer, by each of its names."""
    of_first: dict[str, list[int]] = {}
    for number, axis in enumerate(structure.propagation.axes):
        of_first.setdefault(axis.tensor, []).append(number)
    tensors, first = structure.propagation.traces[0].tensors, dict[int, str]()
    names = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
    return {name: of_first.get(known, []) for name, known in names.items()}
