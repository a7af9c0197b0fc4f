"""One HTML page that shows what a pruning run did, and holds all it shows.

Needs ``pip install lightning-taylor-prune[report]``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning_taylor_prune.report import comparison, words
from lightning_taylor_prune.report.class_figures import accuracy_figure, confusion_figure, difference_figure
from lightning_taylor_prune.report.classes import (
    ClassChange,
    Matrices,
    Mistake,
    class_changes,
    grown_mistakes,
    matrices,
)
from lightning_taylor_prune.report.figures import filters_figure, progress_figure, scores_figure
from lightning_taylor_prune.report.pictures import Picture, picture
from lightning_taylor_prune.report.results import Progress, Results
from lightning_taylor_prune.report.scores import GroupLoss, group_losses, why
from lightning_taylor_prune.report.templating import render_template

SHOWN = 20
"""Classes and groups of filters that are drawn and listed where there are too many for all."""


def shown(entries: list[Any]) -> list[Any]:
    """Return the entries to draw: all, or the first; never all but a few."""
    return entries if len(entries) <= SHOWN + 5 else entries[:SHOWN]


def write_report(results: Results, folder: Path | str) -> Path:
    """Write ``report.html``, its figures as PNG, ``comparison.csv`` and ``comparison.json``.

    The page omits what the results do not have (confusion matrices, latencies, scores).

    Args:
        results: What the run found out.
        folder: Folder to write to; it is created if it is missing.

    Returns:
        The path of ``report.html``, which needs no other file and no network.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = _parts(results)
    for part in parts.values():
        if isinstance(part, Picture):
            (folder / f"{part.name}.png").write_bytes(part.main.png)
    comparison.save(comparison.compare(results.original, results.pruned), folder)
    page = folder / "report.html"
    page.write_text(render(results, parts), encoding="utf-8")
    return page


def render(results: Results, parts: dict[str, Any]) -> str:
    """Lay out the page; names and notes are escaped."""
    return render_template("report.html", why=why, shown=shown, results=results, **parts)


def _parts(results: Results) -> dict[str, Any]:
    """Return what the template shows, figures drawn; ``None`` or empty for what the results lack."""
    return {
        "lines": words.comparison_lines(results.original, results.pruned),
        "prunes": _prunes(results),
        "progress": None if results.progress is None else _progress_picture(results.progress),
        "filters": _filters_picture(results),
        **_score_parts(group_losses(results.groups, results.history)),
        **_class_parts(results),
    }


def _progress_picture(progress: Progress) -> Picture:
    known = [value for value in progress.accuracies if math.isfinite(value)]
    accuracy = (
        f"Validation accuracy starts at {words.percent(known[0])}, is {words.percent(min(known))} at its lowest and "
        f"{words.percent(known[-1])} after the last prune. "
        if known
        else ""
    )
    prunable = progress.num_prunable_filters
    lasting = [n for at, n in zip(progress.iterations, prunable, strict=True) if at not in progress.taken_back]
    alt = (
        f"Three line charts over the same iterations, with a vertical line at each of "
        f"{words.plural(len(progress.iterations) - 1, 'prune')}: training loss, validation accuracy, prunable filters. "
        f"{accuracy}There are {prunable[0]:,} prunable filters at first and {lasting[-1]:,} at the end."
    )
    caption = "Each grey line is a prune: filters are removed, and training continues at once."
    return picture("progress", alt, caption, lambda style: progress_figure(progress, style))


def _prunes(results: Results) -> list[dict[str, Any]]:
    """Return a row for each prune, with the validation accuracy that followed where it is known."""
    progress = results.progress
    complete = progress is not None and len(progress.accuracies) == len(results.history) + 1
    accuracies = progress.accuracies[1:] if progress is not None and complete else [None] * len(results.history)
    return [{**row, "accuracy": accuracy} for row, accuracy in zip(results.history, accuracies, strict=True)]


def _filters_picture(results: Results) -> Picture | None:
    before, after = results.original.filters_per_layer, results.pruned.filters_per_layer
    if not before:
        return None
    kept = {name: after[name] / count for name, count in before.items() if count}
    least = min(kept, key=lambda name: kept[name])
    untouched = sum(after[name] == count for name, count in before.items())
    alt = (
        f"Filters of {words.plural(len(before), 'layer')}: {sum(before.values()):,} before, {sum(after.values()):,} "
        f"after. {least} kept least, {after[least]:,} of {before[least]:,}; "
        f"{words.plural(untouched, 'layer')} kept all."
    )
    caption = "Light: what each convolution had. Strong: what it kept. From the input down to the output."
    return picture("filters", alt, caption, lambda style: filters_figure(before, after, style))


def _score_parts(losses: list[GroupLoss]) -> dict[str, Any]:
    if not any(loss.lost for loss in losses):
        return {"losses": losses, "scores": None}
    drawn = shown(losses)
    most = " ".join(f"{loss.name} {why(loss)}" for loss in drawn[:3])
    alt = f"Units that each group of filters lost, largest share on top, beside its rank by score. {most}"
    caption = (
        "Rank: of all units that could be removed, how many per cent scored lower than the layer's median unit. Units "
        "with the lowest scores are removed first, so layers with a low rank lose most; the units that they keep rank "
        "higher. A number such as +2 after a name: as many more layers are coupled to it."
    )
    scored = any(loss.first_rank is not None for loss in drawn)
    scores = picture("scores", alt, caption, lambda style: scores_figure(drawn, style)) if scored else None
    return {"losses": losses, "scores": scores}


def _class_parts(results: Results) -> dict[str, Any]:
    before, after = results.original.confusion, results.pruned.confusion
    names = results.class_names
    if before is None or after is None or not (changes := class_changes(names, before, after)):
        return {"changes": []}
    both = matrices(names, before, after, SHOWN)
    mistakes = grown_mistakes(names, before, after, 10)
    return {
        "changes": changes,
        "mistakes": mistakes,
        "confusion_rows": len(both.rows),
        "accuracy": _accuracy_picture(changes),
        "confusion": _confusion_picture(both),
        "difference": _difference_picture(both, changes, mistakes),
    }


def _accuracy_picture(changes: list[ClassChange]) -> Picture:
    drawn = shown(changes)
    worst = ", ".join(f"{c.name} {words.percent(c.before)} to {words.percent(c.after)}" for c in drawn[:3])
    alt = f"Accuracy of {words.plural(len(drawn), 'class', 'classes')} before and after, worst drop on top: {worst}."
    caption = "Ring: before. Diamond: after. On the right the change in percentage points."
    return picture("classes", alt, caption, lambda style: accuracy_figure(drawn, style))


def _confusion_picture(both: Matrices) -> Picture:
    alt = (
        f"Two confusion matrices of {words.plural(len(both.rows), 'class', 'classes')}, before and after pruning; "
        f"each row adds up to 100 %. {_strongest('before', both, both.before)} {_strongest('after', both, both.after)}"
    )
    caption = "Rows: what it was. Columns: what the network said. The shading favours small shares, so mistakes show."
    return picture("confusion", alt, caption, lambda style: confusion_figure(both, style))


def _strongest(which: str, both: Matrices, matrix: Any) -> str:
    """Say which confusion of two drawn classes is the most frequent."""
    shares = {
        (row, column): float(matrix[i, j])
        for i, row in enumerate(both.rows)
        for j, column in enumerate(both.columns[: len(both.rows)])
        if i != j and math.isfinite(matrix[i, j])
    }
    if not shares:
        return ""
    true, predicted = max(shares, key=lambda pair: shares[pair])
    share = words.percent(shares[true, predicted])
    return f"Most frequent mistake {which}: {true} taken for {predicted}, {share} of {true}."


def _difference_picture(both: Matrices, changes: list[ClassChange], mistakes: list[Mistake]) -> Picture:
    worst = changes[0]
    grown = (
        f" The mistake that grew most: {mistakes[0].true} taken for {mistakes[0].predicted}, "
        f"{words.percent(mistakes[0].before)} before and {words.percent(mistakes[0].after)} after."
        if mistakes
        else ""
    )
    alt = (
        f"Difference of the two matrices, after minus before, in percentage points. On the diagonal {worst.name} "
        f"changed most for the worse, {words.signed(worst.points)} points.{grown}"
    )
    caption = "Orange: more often than before. Blue: less often. The diagonal is what is right, all else are mistakes."
    return picture("difference", alt, caption, lambda style: difference_figure(both, style))
