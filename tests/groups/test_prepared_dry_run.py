"""Dry runs of one cut that share what they can find what runs of their own would find, and change nothing."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune.groups.analysis import Analysis
from lightning_taylor_prune.groups.changes import CodeChanges, SizeRule
from lightning_taylor_prune.groups.divergence import Divergence
from lightning_taylor_prune.groups.dry_run import DryRun, PreparedDryRun
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.groups.trial import Trial
from lightning_taylor_prune.labels.places import AxisRef
from lightning_taylor_prune.labels.propagate import propagate
from lightning_taylor_prune.labels.runs import run_on_labels
from lightning_taylor_prune.modules.rewrite import HELD
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.graph import trace
from lightning_taylor_prune.tracing.recorder import training_flags
from lightning_taylor_prune.tracing.runs import PreparedRun
from tests.oracles import differences, state_of


class Attribute(nn.Module):
    """Holds the width of its first layer, and runs other operators in training than in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.width, self.runs = 8, [0]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).view(len(x), self.width)
        return self.last(x.tanh() if self.training else x.relu())


class Property(Attribute):
    """The width is a property: setting it stores two values."""

    @property
    def width(self) -> int:
        return self._half * 2 + self._rest

    @width.setter
    def width(self, value: int) -> None:
        self._half, self._rest = divmod(value, 2)


class Settings:
    def __init__(self, width: int) -> None:
        self.width = width


class Configured(Attribute):
    """The width is in a configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Settings(8)

    def forward(self, x: Tensor) -> Tensor:
        self.__dict__["width"] = self.config.width
        return super().forward(x)


class InCode(Attribute):
    """The width is in the code only."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).view(-1, 8)
        return self.last(x.tanh() if self.training else x.relu())


class Breaks(Attribute):
    """Fails in evaluation, after it has stored what it should not."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.runs.append(1)
        self.last.kept = x
        if x.grad_fn is not None and self.first.weight.shape[0] == 7 and not self.training:
            raise ValueError("broken")
        return x


@dataclass
class Case:
    """A network that loses a channel of its first layer, in both modes."""

    model: Attribute
    path: str
    trial: Trial
    structure: Structure

    @classmethod
    def of(cls, kind: type[Attribute]) -> Case:
        torch.manual_seed(0)
        model = kind()
        call = Call("", (torch.randn(2, 6),))
        traces = [trace(model, call, dict.fromkeys(training_flags(model), mode)) for mode in (True, False)]
        structure = Structure.of(propagate(run_on_labels(traces)))
        groups = ChannelGroups(Analysis.of(structure, CodeChanges(), DryRun(traces), [call]))
        path = "config.width" if kind is Configured else "width"
        return cls(model, path, Trial(model, groups, groups.plan({"first": [0]})), structure)

    def prepared(self) -> PreparedDryRun:
        analysis = self.trial.groups.analysis
        return analysis.dry_run.prepare(self.model, self.structure, self.trial.kept, self.trial.plan.cuts)

    def changes(self, *originals: int) -> CodeChanges:
        """Return the changes that set the width to 7 for an 8, to 14 for a 16, and so on."""
        return CodeChanges(tuple(SizeRule("", self.path, original, AxisRef(0, 0, 0, 1)) for original in originals))


kinds = pytest.mark.parametrize("kind", [Attribute, Property, Configured], ids=lambda kind: kind.__name__)


def told(found: Divergence | None) -> object:
    """Return what a divergence says, but for the modules themselves."""
    return None if found is None else (found.site, found.message, found.lines, found.numbers, len(found.modules))


def fresh(kind: type[Attribute], *changes: int) -> object:
    """Return what is found in a network of its own."""
    case = Case.of(kind)
    return told(case.prepared().check(case.changes(*changes)))


@kinds
def test_a_dry_run_with_a_changed_integer_equals_a_fresh_one(kind: type[Attribute]) -> None:
    case = Case.of(kind)
    prepared, tried = case.prepared(), [(), (8,), (16,), (24,), (8,), ()]
    found = [told(prepared.check(case.changes(*originals), afresh=True)) for originals in tried]
    assert found == [fresh(kind, *originals) for originals in tried]


@kinds
def test_the_integer_counts_in_every_trace(kind: type[Attribute]) -> None:
    case = Case.of(kind)
    prepared = case.prepared()
    assert (prepared.check(CodeChanges()) is None, prepared.check(case.changes(8))) == (False, None)


@kinds
def test_nothing_is_changed(kind: type[Attribute]) -> None:
    case = Case.of(kind)
    before, width = state_of(case.model), case.model.width
    case.prepared().check(case.changes(16))
    assert (differences(before, state_of(case.model)), case.model.width) == ([], width)


def test_nothing_is_changed_by_code_that_fails() -> None:
    case = Case.of(Breaks)
    before = state_of(case.model)
    found = case.prepared().check(case.changes(8))
    assert found is not None and "ValueError: broken" in found.message
    assert differences(before, state_of(case.model)) == []


def test_what_is_known_is_not_run_again_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    case, runs, run = Case.of(Attribute), [], PreparedRun.run
    monkeypatch.setattr(PreparedRun, "run", lambda *args: runs.append(1) or run(*args))
    prepared, counted = case.prepared(), []
    for afresh in (False, False, True):
        prepared.check(case.changes(8), afresh)
        counted.append(len(runs))
    assert counted == [2, 2, 4]


def test_operators_run_again_when_an_integer_has_changed() -> None:
    case = Case.of(Attribute)
    prepared = case.prepared()
    messages = [str(prepared.check(case.changes(original))) for original in (16, 24)]
    assert ["14" in messages[0], "21" in messages[1]] == [True, True]


def rewriting(original: int) -> CodeChanges:
    return CodeChanges((SizeRule("", f"{HELD}.0", original, AxisRef(0, 0, 0, 1)),), ("",))


def test_a_module_rewritten_for_one_dry_run_only() -> None:
    case = Case.of(InCode)
    prepared, before = case.prepared(), state_of(case.model)
    outcomes = [prepared.check(changes) is None for changes in (CodeChanges(), rewriting(8), CodeChanges())]
    assert (outcomes, differences(before, state_of(case.model))) == ([False, True, False], [])
