"""Reports of a pruning run: tables, plots, and one HTML page.

Nothing here imports matplotlib or jinja2; :mod:`~lightning_taylor_prune.report.figures` and
:mod:`~lightning_taylor_prune.report.page` do, and need ``pip install lightning-taylor-prune[report]``.
"""

from lightning_taylor_prune.report.comparison import compare
from lightning_taylor_prune.report.layers import filters_table, locked_lines
from lightning_taylor_prune.report.results import (
    GroupResult,
    Latency,
    NetworkResult,
    Progress,
    Results,
    groups_of,
)

__all__ = [
    "GroupResult",
    "Latency",
    "NetworkResult",
    "Progress",
    "Results",
    "compare",
    "filters_table",
    "groups_of",
    "locked_lines",
]
