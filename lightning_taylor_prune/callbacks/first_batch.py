"""Learn from the first batch how a training step calls its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule

from lightning_taylor_prune.groups.find import groups_of_network
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.modules.likeness import Twin, likely_twins
from lightning_taylor_prune.pruning.original import OriginalNetwork
from lightning_taylor_prune.pruning.ranks import Ranks, from_text, to_text
from lightning_taylor_prune.tracing.call import Call, decode_calls, encode_calls
from lightning_taylor_prune.tracing.capture import CallRecorder
from lightning_taylor_prune.tracing.submodules import TraceableSubmodules, traceable_submodules


class FirstBatchRecorder:
    """Records how the first batch calls the network, and finds its groups from that.

    Args:
        target: Name of the submodule to look into, or ``None`` for whatever the training step calls.
    """

    def __init__(self, target: str | None) -> None:
        self._target = target
        self._recorder: CallRecorder | None = None

    def begin(self, pl_module: LightningModule) -> None:
        """Record from now on, unless that is so already."""
        if self._recorder is None:
            self._recorder = CallRecorder(pl_module, self._target)

    def close(self) -> None:
        """Remove the hooks."""
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None

    def analyse(
        self,
        pl_module: LightningModule,
        ranks: Ranks,
        rewrite_hard_coded: bool,
        resumed: Mapping[str, Any],
        calls: Sequence[Call] | None,
    ) -> tuple[ChannelGroups, OriginalNetwork]:
        """Find the groups of the network as it is now, and what it was before its first prune.

        Args:
            pl_module: The module.
            ranks: The ranks of the job.
            rewrite_hard_coded: As in :func:`~lightning_taylor_prune.groups.find.find_groups`.
            resumed: The callback's state in a checkpoint; empty where training begins. The groups are then those
                that the network had before its first prune, less what was removed.
            calls: How the network is called, where that is known without a first batch.

        Raises:
            MisconfigurationException: No call was seen.
            TraceError: No part of the network can be traced.
        """
        if not resumed:
            groups = self._find_groups(pl_module, ranks, rewrite_hard_coded)
            return groups, OriginalNetwork.of(pl_module, groups)
        original = OriginalNetwork.from_state_dict(resumed["original"])
        if calls is None:
            calls = self._calls_like_those_of(original, pl_module, ranks)
        return original.find_groups(pl_module, calls, rewrite_hard_coded).restricted(resumed["kept"]), original

    def _find_groups(self, pl_module: LightningModule, ranks: Ranks, rewrite_hard_coded: bool) -> ChannelGroups:
        """Analyse the network as the first batch calls it: as a whole, or else its submodules."""
        recorder = self._end(pl_module)
        found = ranks.from_first([list(twin) for twin in likely_twins(pl_module)])
        return groups_of_network(
            pl_module,
            recorder.calls,
            lambda: _submodules_of_first_rank(recorder, pl_module, ranks),
            rewrite_hard_coded,
            [Twin(*names) for names in found],
        )

    def _calls_like_those_of(
        self, original: OriginalNetwork, pl_module: LightningModule, ranks: Ranks
    ) -> Sequence[Call]:
        """Return the first batch's calls of what was analysed before: the whole network, or its submodules."""
        recorder = self._end(pl_module)
        if original.in_submodules:
            return _submodules_of_first_rank(recorder, pl_module, ranks).calls
        return recorder.calls

    def _end(self, pl_module: LightningModule) -> CallRecorder:
        recorder = self._recorder
        self.close()
        if recorder is None or not recorder.calls:
            wanted = f"`{self._target}`" if self._target else "a network"
            raise MisconfigurationException(
                f"Expected {type(pl_module).__name__}.training_step to call {wanted}, but in its first batch no such "
                "call was seen, so that nothing can be pruned. Set `target` to the name of a submodule that it calls."
            )
        return recorder


def calls_of_checkpoint(resumed: Mapping[str, Any], pl_module: LightningModule) -> list[Call] | None:
    """Return how a checkpoint says the network is called; ``None`` where its arguments are no plain data."""
    return OriginalNetwork.from_state_dict(resumed["original"]).calls(pl_module)


def _submodules_of_first_rank(recorder: CallRecorder, pl_module: LightningModule, ranks: Ranks) -> TraceableSubmodules:
    """Return what rank 0 can trace: what is called depends on values, and these on the rank."""
    own = traceable_submodules(recorder)
    if ranks.count == 1:
        return own
    encoded = {"calls": encode_calls(own.calls, pl_module.device), "fixed": list(own.fixed)}
    found = from_text(ranks.from_first(to_text(encoded)))
    if found["calls"] is None:
        ranks.agree(" ".join(call.module for call in own.calls))
        return own
    return TraceableSubmodules(tuple(decode_calls(found["calls"], pl_module.device)), tuple(found["fixed"]))
