"""An inspection as text: aligned columns for files and pipes, tables of rich for terminals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lightning_taylor_prune.report.layers import aligned, some
from lightning_taylor_prune.report.words import milliseconds, number, percent, plural, short

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from lightning_taylor_prune.report.inspection import InspectedGroup, Inspection

COST_NAMES: Mapping[str, str] = {
    "params": "parameters",
    "macs": "MACs",
    "filters": "filters",
    "memory": "memory",
    "activation_memory": "activations",
    "latency": "latency",
}
"""What costs are called in tables; one that is missing here is called by its own name."""

PER_UNIT = ("params", "macs")
"""Costs of which the tables say what one unit saves; all are in the values and in JSON."""


class Section(NamedTuple):
    """A table with its title; its first column is words, the others are numbers but for those in ``words``."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: tuple[int, ...] = (0,)


def headline(inspection: Inspection) -> str:
    """Say in one sentence what was found."""
    params = inspection["params"]
    what = f"{inspection.network}, {number(params.now)} parameters"
    if not inspection.groups:
        return f"{what}: nothing can be removed."
    units, groups = plural(inspection.units, "unit"), plural(len(inspection.groups), "group")
    return f"{what}: {units} in {groups} can be removed, and with them up to {share(params.fraction)} of these."


def sections(inspection: Inspection) -> list[Section]:
    """Return the tables that have rows."""
    found = [_reductions(inspection), _groups(inspection), _locked(inspection)]
    return [section for section in found if section.rows]


def as_text(inspection: Inspection) -> str:
    """Lay an inspection out in aligned columns."""
    blocks = [headline(inspection)]
    for section in sections(inspection):
        blocks.append("\n".join([section.title, *aligned([section.headings, *section.rows], section.words)]))
    return "\n\n".join(blocks).replace("\N{NO-BREAK SPACE}", " ")


def as_tables(inspection: Inspection) -> RenderableType:
    """Lay an inspection out for the terminal, with rich (``pip install rich``)."""
    from rich.console import Group
    from rich.text import Text

    return Group(Text(headline(inspection)), *(_as_table(section) for section in sections(inspection)))


def _as_table(section: Section) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=section.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column, heading in enumerate(section.headings):
        table.add_column(heading, justify="left" if column in section.words else "right", overflow="fold")
    for row in section.rows:
        table.add_row(*(Text(cell) for cell in row))  # names with brackets are no markup
    return table


def cost_text(cost: str, value: float) -> str:
    """Write a cost with its unit."""
    writers: dict[str, Callable[[float], str]] = {
        "memory": bytes_text,
        "activation_memory": bytes_text,
        "latency": milliseconds,
        "macs": short,
    }
    return writers.get(cost, number)(value)


def bytes_text(value: float) -> str:
    r"""Write a number of bytes.

    Example:
        >>> bytes_text(46_758_048), bytes_text(980)
        ('44.59\xa0MB', '980\xa0B')
    """
    for scale, unit in ((2**30, "GB"), (2**20, "MB"), (2**10, "kB")):
        if value >= scale:
            return f"{number(value / scale, 2)}\N{NO-BREAK SPACE}{unit}"
    return f"{number(value)}\N{NO-BREAK SPACE}B"


def share(fraction: float) -> str:
    """Write a fraction as a percentage; nearly all is not all."""
    return percent(fraction, 2 if 0.999 < fraction < 1 else 1)


def _reductions(inspection: Inspection) -> Section:
    rows = [
        (COST_NAMES.get(r.cost, r.cost), cost_text(r.cost, r.now), cost_text(r.cost, r.least), share(r.fraction))
        for r in inspection.reductions
    ]
    title = "Largest possible reduction, when every group keeps as few units as it may"
    return Section(title, ("cost", "now", "at least", "removed at most"), rows)


def _groups(inspection: Inspection) -> Section:
    headings = ("group", "units", "kept at least", "params per unit", "MACs per unit", "exact", "also written by")
    return Section(
        "Groups: a unit is removed with everything that writes and reads it",
        headings,
        [_group_row(group) for group in inspection.groups],
        words=(0, 5, 6),
    )


def _group_row(group: InspectedGroup) -> tuple[str, ...]:
    others = [layer for layer in group.layers if layer != group.name]
    saved = (cost_text(cost, group.saved.get(cost, 0)) for cost in PER_UNIT)
    units = number(group.units) + (f" of {number(group.width)} channels" if group.width > 1 else "")
    return (
        group.name,
        units,
        number(group.least_units),
        *saved,
        "yes" if group.exact else "no",
        some(others, shown=3),
    )


def _locked(inspection: Inspection) -> Section:
    rows = [(lock.layer, number(lock.channels), _because(lock.reason, lock.code)) for lock in inspection.locked]
    return Section("Locked: channels that cannot be removed", ("layer", "channels", "reason"), rows, words=(0, 2))


def _because(reason: str, code: str) -> str:
    return f"{reason}: {code}" if code else reason
