"""Let everything that loads weights load pruned ones, for the time of a block: code of others, above all."""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_taylor_prune.pruning.fit import fit_, shapes_in, unchanged_on_failure
from lightning_taylor_prune.pruning.loading import records_of_checkpoint, refuse_others
from lightning_taylor_prune.pruning.record import PruningRecord, records_of


@contextlib.contextmanager
def loading_pruned() -> Iterator[None]:
    """Let ``load_state_dict`` of every module take pruned weights within a block, whoever calls it.

    For libraries that build the network themselves and load its weights, so that you can neither hand them a network
    nor add a method to its class: ``LightningModule.load_from_checkpoint``, ``Trainer.test(ckpt_path=...)`` without
    the callback, and the ``load`` functions of libraries for forecasting or anomaly detection. The network first gets
    the shapes of the weights, if pruning can have made them from its own, and integers that it holds (its number of
    attention heads, say) follow; see :func:`~lightning_taylor_prune.pruning.loading.load_pruned` on what is checked.

    Integers come with the state dict of a pruned network itself, in its metadata. Code that copies the tensors into
    another dict, under the same names or others, loses the metadata: have it read the file by ``torch.load`` within the
    block, where what belongs to which tensor is remembered.

    Blocks may be nested. A block concerns all threads of the process. If loading fails, the network is as it was.

    Raises:
        PlanError: In the block, by ``load_state_dict``: pruning cannot have made the weights from the network.

    Example:
        >>> network = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> weights = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2)).state_dict()
        >>> with loading_pruned():
        ...     network.load_state_dict(weights)
        <All keys matched successfully>
        >>> network[0]
        Linear(in_features=8, out_features=3, bias=True)
    """
    _PATCH.enter()
    try:
        yield
    finally:
        _PATCH.leave()


class _Patch:
    """Puts own functions in the place of torch's while some block is active."""

    def __init__(self) -> None:
        self._blocks, self._lock, self._origins = 0, threading.RLock(), _Origins()
        self._thread = threading.local()
        self._put: list[tuple[Any, str, Callable[..., Any], Callable[..., Any]]] = []

    def enter(self) -> None:
        with self._lock:
            self._blocks += 1
            if self._blocks == 1:
                self._origins = _Origins()
                self._replace(nn.Module, "load_state_dict", self._load_state_dict)
                self._replace(torch, "load", self._load)

    def leave(self) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                for owner, name, before, own in reversed(self._put):
                    if getattr(owner, name) is own:  # somebody else's patch calls ours, which does nothing any more
                        setattr(owner, name, before)
                self._put, self._origins = [], _Origins()

    def _replace(self, owner: Any, name: str, through: Callable[..., Any]) -> None:
        before = getattr(owner, name)

        @functools.wraps(before)
        def own(*args: Any, **kwargs: Any) -> Any:
            return through(before, *args, **kwargs) if self._blocks else before(*args, **kwargs)

        setattr(owner, name, own)
        self._put.append((owner, name, before, own))

    def _load(self, before: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run `torch.load`, and remember what it read."""
        loaded = before(*args, **kwargs)
        self._origins.note(loaded)
        return loaded

    def _load_state_dict(
        self, before: Callable[..., Any], module: nn.Module, state_dict: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Run `load_state_dict`; the module takes the shapes first, once its own hooks have renamed the weights."""
        nested = getattr(self._thread, "loading", False)
        if nested or isinstance(module, torch.jit.ScriptModule) or not isinstance(state_dict, Mapping):
            return before(module, state_dict, *args, **kwargs)
        handle = module.register_load_state_dict_pre_hook(self._take_shapes)
        self._thread.loading = True
        try:
            with unchanged_on_failure(module, shapes_in(state_dict)):
                return before(module, state_dict, *args, **kwargs)
        finally:
            self._thread.loading = False
            handle.remove()

    def _take_shapes(self, module: nn.Module, state_dict: Mapping[str, Any], *args: Any) -> None:
        shapes, records = shapes_in(state_dict), records_of(state_dict) or self._origins.records_of(state_dict)
        refuse_others(module, shapes, records, "the state dict")
        fit_(module, shapes, records)


class _Origins:
    """Which record the tensors belong to that were read from files, and their names there."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], PruningRecord, str]] = {}

    def note(self, loaded: Any) -> None:
        """Note the tensors of every state dict in what was read: by itself, or in a dict."""
        if not isinstance(loaded, Mapping):
            return
        for found in (loaded, *(value for value in loaded.values() if isinstance(value, Mapping))):
            for record in records_of_checkpoint(found):
                for name, value in found.get("state_dict", found).items():
                    if isinstance(value, Tensor):
                        self._known[id(value)] = (weakref.ref(value), record, name)

    def records_of(self, state_dict: Mapping[str, Any]) -> list[PruningRecord]:
        """Return the records of the tensors of a state dict, under the names that they have in it."""
        moves = {}
        for target, value in state_dict.items():
            known = self._known.get(id(value))
            if known is not None and known[0]() is value:
                moves[id(known[1]), *_renamed_part(known[2], target)] = known[1]
        return [record.moved(source, target) for (_, source, target), record in moves.items()]


def _renamed_part(source: str, target: str) -> tuple[str, str]:
    """Return the module that was renamed, by its old and its new name: what follows it is the same in both names.

    Example:
        >>> _renamed_part("model.encoder.conv.weight", "encoder.conv.weight")
        ('model', '')
    """
    old, new = source.split("."), target.split(".")
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    return ".".join(old), ".".join(new)


_PATCH = _Patch()
