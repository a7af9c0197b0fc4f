"""How a network is called, agreed on between the ranks of a job: what depends on values depends on the rank."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningModule

from lightning_taylor_prune.errors import PruningError, TraceError
from lightning_taylor_prune.pruning.ranks import Ranks, from_text, to_text
from lightning_taylor_prune.tracing.call import Call, decode_calls, encode_calls
from lightning_taylor_prune.tracing.capture import CallRecorder
from lightning_taylor_prune.tracing.paths import answered_paths
from lightning_taylor_prune.tracing.submodules import TraceableSubmodules, traceable_submodules


def answered_by_first_rank(calls: Sequence[Call], pl_module: LightningModule, ranks: Ranks) -> Sequence[Call]:
    """Return what the calls give for real on rank 0.

    Raises:
        TraceError: They cannot be traced there.
    """
    own: list[Call] = []
    reason = ""
    try:
        own = answered_paths(pl_module, calls)
    except TraceError as error:
        reason = str(error)
    encoded = None
    if ranks.count > 1:
        encoded, reason = from_text(ranks.from_first(to_text([encode_calls(own, pl_module.device), reason])))
    if reason:
        raise TraceError(reason, in_forward=True)
    return own if encoded is None else decode_calls(encoded, pl_module.device)


def submodules_of_first_rank(recorder: CallRecorder, pl_module: LightningModule, ranks: Ranks) -> TraceableSubmodules:
    """Return what rank 0 can trace."""
    own = traceable_submodules(recorder)
    if ranks.count == 1:
        return own
    encoded = {"calls": encode_calls(own.calls, pl_module.device), "fixed": list(own.fixed)}
    found = from_text(ranks.from_first(to_text(encoded)))
    if found["calls"] is None:
        ranks.agree(" ".join(call.module for call in own.calls))
        return own
    return TraceableSubmodules(tuple(decode_calls(found["calls"], pl_module.device)), tuple(found["fixed"]))


def calls_of_all_ranks(calls: Sequence[Call], pl_module: LightningModule, ranks: Ranks) -> list[Call]:
    """Return the calls of all ranks together, those of rank 0 first.

    Raises:
        PruningError: The arguments of one are no plain data, so that other ranks cannot trace it.
    """
    if ranks.count == 1:
        return list(calls)
    encoded = [from_text(text) for text in ranks.from_all(to_text(encode_calls(calls, pl_module.device)))]
    if any(of_rank is None for of_rank in encoded):
        raise PruningError(
            "Some ranks call the network in ways that the first batch did not show, with arguments other than tensors "
            "and plain data, so that the other ranks cannot analyse them. Set `target` to a submodule that is called "
            "with tensors."
        )
    return [call for of_rank in encoded for call in decode_calls(of_rank, pl_module.device)]
