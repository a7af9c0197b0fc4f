"""Numbers and sentences for people. Pure functions; nothing here says "NaN"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_taylor_prune.report.classes import ClassChange, chance_points
from lightning_taylor_prune.report.results import Latency, NetworkResult, Results

UNKNOWN = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
NBSP = "\N{NO-BREAK SPACE}"
SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def number(value: float | None, decimals: int = 0) -> str:
    """Write a number with thousands separators and a true minus sign.

    Example:
        >>> number(1234.56, 1)
        '1,234.6'
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def short(value: float) -> str:
    r"""Write a large number with three or four digits and a unit prefix.

    Example:
        >>> short(41_234_567), short(980)
        ('41.2\xa0M', '980')
    """
    for scale, prefix in SCALES:
        if abs(value) >= scale:
            return f"{number(value / scale, 2 if abs(value) < 10 * scale else 1)}{NBSP}{prefix}"
    return number(value)


def signed(value: float | None, decimals: int = 1) -> str:
    """Write a change with its sign; 0 has none.

    Example:
        >>> signed(2.04), signed(0.01)
        ('+2.0', '0.0')
    """
    text = number(value, decimals)
    if text.strip(f"{MINUS}0.") == "":
        return text.lstrip(MINUS)
    return text if text == UNKNOWN or text.startswith(MINUS) else f"+{text}"


def percent(fraction: float | None, decimals: int = 1) -> str:
    r"""Write a fraction as a percentage.

    Example:
        >>> percent(0.8736)
        '87.4\xa0%'
    """
    if fraction is None or not math.isfinite(fraction):
        return UNKNOWN
    return f"{number(100 * fraction, decimals)}{NBSP}%"


def relative(before: float, after: float) -> str:
    """Write a change as a percentage of what there was before."""
    return f"{signed(100 * (after - before) / before)}{NBSP}%" if before and math.isfinite(after / before) else UNKNOWN


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Write a count and its noun.

    Example:
        >>> plural(1, "prune"), plural(2, "class", "classes")
        ('1 prune', '2 classes')
    """
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


@dataclass(frozen=True)
class Line:
    """A line of the comparison table, as text."""

    name: str
    original: str
    pruned: str
    change: str


def comparison_lines(original: NetworkResult, pruned: NetworkResult) -> list[Line]:
    """Set two networks side by side, rounded, with units."""
    points = 100 * (pruned.accuracy - original.accuracy)
    lines = [
        Line(
            "Accuracy on the test examples",
            percent(original.accuracy, 2),
            percent(pruned.accuracy, 2),
            f"{signed(points, 2)}{NBSP}points" if math.isfinite(points) else UNKNOWN,
        ),
        _line("Learnable parameters", original.params, pruned.params),
        Line(
            "Memory of the parameters (float32)",
            f"{number(original.megabytes, 2)}{NBSP}MB",
            f"{number(pruned.megabytes, 2)}{NBSP}MB",
            relative(original.megabytes, pruned.megabytes),
        ),
        _line("Multiply-accumulates (MACs) for one example", original.macs, pruned.macs),
        _line("Filters and units of all layers", original.filters, pruned.filters),
    ]
    before, after = original.latency, pruned.latency
    if before and after and comparable(before, after):
        times = (milliseconds(before.median_ms), milliseconds(after.median_ms))
        lines.append(Line("Time of a forward pass", *times, relative(before.median_ms, after.median_ms)))
    return lines


def _line(name: str, original: int, pruned: int) -> Line:
    return Line(name, short(original), short(pruned), relative(original, pruned))


def comparable(before: Latency | None, after: Latency | None) -> bool:
    """Whether two latencies were measured under the same conditions."""
    return (
        before is not None
        and after is not None
        and (before.device, before.batch_size) == (after.device, after.batch_size)
    )


def milliseconds(value: float) -> str:
    """Write a time with about three digits."""
    return f"{number(value, 2 if value < 10 else 1 if value < 100 else 0)}{NBSP}ms"


def time_range(latency: Latency) -> str:
    """Write the times, in milliseconds, between which four of five passes were measured."""
    low, high = (milliseconds(value).split(NBSP)[0] for value in (latency.low_ms, latency.high_ms))
    return f"{low} to {high}"


def speedup(results: Results) -> float | None:
    """Return how many times as fast the pruned network was measured to be, ``None`` if it was not."""
    before, after = results.original.latency, results.pruned.latency
    if before is None or after is None or not comparable(before, after) or not after.median_ms:
        return None
    return before.median_ms / after.median_ms


def outcome(results: Results) -> str:
    """Say in one sentence what came of the run."""
    original, pruned = results.original, results.pruned
    removed = 1 - pruned.params / original.params if original.params else 0.0
    parts = [
        f"Pruning removed {percent(removed)} of the learnable parameters"
        + (f" and {percent(1 - pruned.macs / original.macs)} of the multiply-accumulates" if original.macs else "")
        if removed > 0
        else "Pruning removed no parameters"
    ]
    parts += [text for text in (_accuracy_words(original.accuracy, pruned.accuracy), _speed_words(results)) if text]
    return f"{'; '.join(parts)}."


def _accuracy_words(before: float, after: float) -> str:
    points = 100 * (after - before)
    if not math.isfinite(points):
        return ""
    if abs(points) < 0.005:
        return f"test accuracy stayed at {percent(before)}"
    direction = "fell" if points < 0 else "rose"
    return f"test accuracy {direction} from {percent(before)} to {percent(after)} ({signed(points)} points)"


def _speed_words(results: Results) -> str:
    factor = speedup(results)
    if factor is None:
        return ""
    if abs(factor - 1) < 0.02:
        return "a forward pass takes as long as before"
    return f"a forward pass is {number(factor, 2)} times as fast"


def classes_summary(changes: Sequence[ClassChange]) -> str:
    """Sum up how the classes fared, and how much of it may be chance."""
    worse = sum(round(change.points, 6) < 0 for change in changes)
    better = sum(round(change.points, 6) > 0 for change in changes)
    equal = len(changes) - worse - better
    counts = f"{plural(worse, 'class', 'classes')} got worse, {better:,} better, {equal:,} did not change."
    worst, best = (f"{signed(change.points)} points ({change.name})" for change in (changes[0], changes[-1]))
    spread = f" Changes range from {worst} to {best}."
    chance = (
        f" With {plural(min(c.count for c in changes), 'test example')} or more in each class, changes within about "
        f"±{number(chance_points(changes), 1)} points may be chance."
    )
    return counts + spread + chance
