"""Run a call for real and note what its operators give: where that depends on values, fake tensors are told so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_taylor_prune.tracing.call import Answer, Call, tree_fake
from lightning_taylor_prune.tracing.fakes import FakeMode
from lightning_taylor_prune.tracing.isolation import Snapshot
from lightning_taylor_prune.tracing.recorder import fake_trace, training_flags
from lightning_taylor_prune.tracing.runs import PreparedRun
from lightning_taylor_prune.tracing.values import as_answer


def with_answers(root: nn.Module, call: Call, training: Mapping[str, bool] | None = None) -> Call:
    """Return a call with what its operators give, for real, on the values that it has; the network is unchanged.

    Args:
        root: The network.
        call: The call, with real tensors; gradients are recorded as in training, and no backward pass follows.
        training: Training flag of every module by name; by default the present ones.

    Raises:
        Exception: Whatever the network's code raises.
    """
    found: list[Answer] = []

    def note(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        found.append(Answer(len(found), str(func), as_answer(result)))
        return result

    recorded = fake_trace(root, call, training or training_flags(root))
    PreparedRun(root, recorded, Snapshot(root)).run_for_real(call, note)
    return replace(tree_fake(call, FakeMode()), answers=tuple(found))
