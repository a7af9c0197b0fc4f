"""Learn from the first batches how a training step calls its network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_taylor_prune.errors import TraceError
from lightning_taylor_prune.pruning.ranks import Ranks, from_text, to_text
from lightning_taylor_prune.tracing.call import Call, decode_calls, encode_calls
from lightning_taylor_prune.tracing.capture import OutermostCalls
from lightning_taylor_prune.tracing.submodules import SubmoduleRecorder, TraceableSubmodules


@dataclass(frozen=True)
class Seen:
    """What the watched batch showed.

    Attributes:
        calls: How the network is called; of one that cannot be traced as a whole, how its parts are.
        fixed: Names of the parameters and buffers that are also used outside of these calls.
        in_parts: What is to be said of a network in parts, else ``""``.
    """

    calls: Sequence[Call]
    fixed: tuple[str, ...] = ()
    in_parts: str = ""


class Watch:
    """Watches the first batch; of a network that cannot be traced as a whole the second one too, part by part.

    Args:
        target: Name of the submodule to watch, or ``None`` for whatever the training step calls.
    """

    def __init__(self, target: str | None) -> None:
        self._target = target
        self._capture: OutermostCalls | SubmoduleRecorder | None = None
        self._untraceable: TraceError | None = None

    def begin(self, pl_module: LightningModule) -> None:
        """Watch from now on, unless that is so already."""
        if self._capture is None:
            kind = OutermostCalls if self._untraceable is None else SubmoduleRecorder
            self._capture = kind(pl_module, self._target)

    def close(self) -> None:
        """Leave no hook behind."""
        if self._capture is not None:
            self._capture.close()
            self._capture = None

    def end(self, pl_module: LightningModule, ranks: Ranks | None) -> Seen:
        """Stop watching and return what was seen.

        Raises:
            MisconfigurationException: No call was seen.
            TraceError: No part of the network can be traced.
        """
        capture = self._capture
        self.close()
        if isinstance(capture, SubmoduleRecorder):
            parts = _of_first_rank(capture.traceable(), pl_module.device, ranks)
            if not parts.calls:
                self.give_up()
            return Seen(parts.calls, parts.fixed, parts.describe(str(self._untraceable)))
        if capture is None or not capture.calls:
            wanted = f"`{self._target}`" if self._target else "a network"
            raise MisconfigurationException(
                f"Expected {type(pl_module).__name__}.training_step to call {wanted}, but in its first batch no such "
                "call was seen, so that nothing can be pruned. Set `target` to the name of a submodule that it calls."
            )
        return Seen(capture.calls)

    def look_closer(self, error: TraceError) -> None:
        """Watch the next batch part by part, as the network cannot be traced as a whole.

        Raises:
            TraceError: That cannot help.
        """
        if self._untraceable is not None or not error.in_forward:
            raise error
        self._untraceable = error

    def give_up(self) -> None:
        """Raise why the network could not be traced as a whole, if that was so."""
        if self._untraceable is not None:
            raise self._untraceable


def _of_first_rank(parts: TraceableSubmodules, device: torch.device, ranks: Ranks | None) -> TraceableSubmodules:
    """Return the parts that rank 0 saw: what is called depends on values, and these on the rank."""
    if ranks is None or ranks.count == 1:
        return parts
    own = {"calls": encode_calls(parts.calls, device), "fixed": list(parts.fixed)}
    found = from_text(ranks.from_first(to_text(own)))
    if found["calls"] is None:
        ranks.agree(" ".join(parts.names))
        return parts
    return TraceableSubmodules(tuple(decode_calls(found["calls"], device)), tuple(found["fixed"]))
