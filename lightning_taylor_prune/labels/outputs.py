"""Why the outputs of a network are locked, and what to do about it."""

from __future__ import annotations

from torch.fx import Node

from lightning_taylor_prune.tracing.recorder import Trace

_CACHED = "is returned in a cache of keys and values; call the network with `use_cache=False` to prune it in training"


def why_output(trace: Trace, node: Node) -> str:
    """Return the reason that locks an output; where the network itself reads on, it may be left out of the result."""
    if node in trace.cached:
        return _CACHED
    if trace.call.is_submodule:
        return f"is an output of `{trace.call.module}`, and the code that uses it cannot be traced"
    is_read = any(user.op != "output" for user in node.users)
    if node not in trace.entries or not is_read:
        return "is an output of the network"
    entry = trace.entries[node]
    return f"is an output of the network (`{entry}`); call it in a module that returns only what is used to prune it"
