"""How long a network takes on the device in use, whichever channels are removed: from measured times of its operators.

May import: groups, labels, modules, cost, tracing, plan, errors.
"""

from lightning_taylor_prune.latency.table import LatencyTable

__all__ = ["LatencyTable"]
