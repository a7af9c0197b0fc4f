"""Tables about what pruning has done."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lightning_taylor_prune.groups.groups import ChannelGroups


def filters_table(before: Mapping[str, int], after: Mapping[str, int], params: int) -> str:
    """Return a text table of the filters of every layer (units, of linear ones), before and after.

    Example:
        >>> print(filters_table({"conv1": 8, "conv2": 16}, {"conv1": 8, "conv2": 4}, 1234))
        layer  before  after  kept
        conv1       8      8  100%
        conv2      16      4   25%
        total      24     12   50%
        1,234 parameters are kept.
    """
    rows = [[name, str(n), str(after[name]), f"{after[name] / n:.0%}"] for name, n in before.items()]
    total, kept = sum(before.values()), sum(after.values())
    rows.append(["total", str(total), str(kept), f"{kept / max(total, 1):.0%}"])
    return "\n".join([*aligned([["layer", "before", "after", "kept"], *rows]), f"{params:,} parameters are kept."])


def locked_lines(groups: ChannelGroups, with_outputs: bool = True) -> list[str]:
    """Return a line for every reason for which channels cannot be removed, with the layers that it concerns.

    Args:
        groups: The groups.
        with_outputs: Name the layers that produce the network's outputs, too; these always keep their channels.
    """
    reasons: dict[str, list[str]] = {}
    for entry in groups.locked:
        if with_outputs or "is an output of the network" not in entry.reason:
            reasons.setdefault(entry.reason, []).append(f"{entry.name} ({entry.num_channels})")
    return [f"Not prunable: {some(names)}: {reason}" for reason, names in reasons.items()]


def some(names: Sequence[str], shown: int = 6) -> str:
    """Join the first names, and say how many more there are.

    Example:
        >>> some(["a", "b", "c"], shown=2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def aligned(rows: Sequence[Sequence[str]], words: Collection[int] = (0,)) -> list[str]:
    """Align columns: those of words to the left, numbers to the right.

    Example:
        >>> aligned([["layer", "kept"], ["conv1", "8"]])
        ['layer  kept', 'conv1     8']
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i in words else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
