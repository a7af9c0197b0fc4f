"""One HTML page that shows what can be removed from a network: a drawing of its groups, and tables.

Needs ``pip install lightning-taylor-prune[report]`` (jinja2; no matplotlib).
"""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from lightning_taylor_prune.report import inspection_text as texts
from lightning_taylor_prune.report.drawing import Box, boxes_of
from lightning_taylor_prune.report.drawing_rows import folded_rows, single_rows
from lightning_taylor_prune.report.drawing_svg import COLOURS, looks_of, svg
from lightning_taylor_prune.report.inspection import Inspection
from lightning_taylor_prune.report.templating import render_template
from lightning_taylor_prune.report.words import plural


def write_inspection(inspection: Inspection, path: Path | str) -> Path:
    """Write a page that needs no other file and no network; returns its path.

    Args:
        inspection: What :func:`~lightning_taylor_prune.report.inspection.inspect` found.
        path: The file to write; its folder is created if it is missing.
    """
    path = Path(path)
    page = render(inspection)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def render(inspection: Inspection) -> str:
    """Lay out the page; names, reasons and code are escaped."""
    boxes = boxes_of(inspection.channel_groups)
    folded, single = folded_rows(boxes), single_rows(boxes)
    looks = looks_of(folded, [group.name for group in inspection.groups])
    return render_template(
        "inspection.html",
        found=inspection,
        headline=texts.headline(inspection),
        texts=texts,
        looks=looks,
        colours=range(COLOURS),
        drawing=Markup(svg(folded, looks, _label(boxes, inspection))),
        whole=None if len(folded) == len(single) else Markup(svg(single, looks, _label(boxes, inspection))),
        operators=len(single),
    )


def _label(boxes: tuple[Box, ...], inspection: Inspection) -> str:
    """Say what the drawing shows, for those who do not see it."""
    return (
        f"Drawing of {inspection.network}, from the input down to the output: {plural(len(boxes), 'operator')} with "
        f"the channels of {plural(len(inspection.groups), 'group')}. The tables list all groups and locked layers."
    )
