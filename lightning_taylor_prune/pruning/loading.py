"""Load checkpoints of pruned networks into networks that their code builds unpruned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_taylor_prune.errors import PlanError
from lightning_taylor_prune.pruning.checkpoint import KEY
from lightning_taylor_prune.pruning.files import read_checkpoint
from lightning_taylor_prune.pruning.fit import fit_, misfit_reasons, shapes_in, unchanged_on_failure
from lightning_taylor_prune.pruning.record import PruningRecord, Shapes, records_of


def follow_checkpoint_shapes(
    module: nn.Module, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *args: Any
) -> None:
    """Load hook: give the module the shapes of a state dict, however many filters that has kept.

    Tensors that pruning cannot have made are not touched: torch then says that their sizes differ. A module-level
    function without state, so that a module that carries it can be copied and pickled.
    """
    shapes, records = shapes_in(state_dict, prefix), records_of(state_dict)
    if not records and KEY in local_metadata:
        records = [PruningRecord.from_data(local_metadata[KEY])]
    fit_(module, shapes, records, misfit_reasons(module, shapes, records, larger=True))


def make_loadable(module: nn.Module) -> RemovableHandle:
    """Let a module load state dicts of its pruned (or larger) selves, from now on.

    The callback does this by itself for the time of a Trainer call. Launchers that train in child processes
    (``ddp_spawn``, notebooks) need it on the module in the main process, before ``fit``.

    Returns:
        A handle whose ``remove()`` takes it back.

    Example:
        >>> network = nn.Linear(8, 4)
        >>> handle = make_loadable(network)
        >>> network.load_state_dict(nn.Linear(8, 3).state_dict())
        <All keys matched successfully>
        >>> network
        Linear(in_features=8, out_features=3, bias=True)
    """
    handle: RemovableHandle = module.register_load_state_dict_pre_hook(follow_checkpoint_shapes)
    return handle


def is_loadable(module: nn.Module) -> bool:
    """Whether :func:`make_loadable` is in force."""
    hooks = module._load_state_dict_pre_hooks.values()
    return any(getattr(hook, "hook", hook) is follow_checkpoint_shapes for hook in hooks)


def records_of_checkpoint(checkpoint: Mapping[str, Any]) -> list[PruningRecord]:
    """Return what a Lightning checkpoint, or a state dict, tells of pruning, under the names of its tensors.

    Raises:
        PlanError: That was damaged or edited.
    """
    found = records_of(checkpoint.get("state_dict", checkpoint))
    return found if found or KEY not in checkpoint else [PruningRecord.from_data(checkpoint[KEY])]


def fit_checkpoint_(module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Give a module the shapes and sizes of a Lightning checkpoint that is about to be loaded into it, in place.

    For ``LightningModule.load_from_checkpoint``, which no callback sees: call it from the module's own
    ``on_load_checkpoint(self, checkpoint)``. Where you cannot add a method to the module,
    :func:`~lightning_taylor_prune.pruning.loading_block.loading_pruned` does the same.

    Raises:
        PlanError: Pruning cannot have made the checkpoint from this module; nothing was changed.

    Example:
        >>> network = nn.Linear(8, 4)
        >>> fit_checkpoint_(network, {"state_dict": nn.Linear(6, 4).state_dict()})
        >>> network
        Linear(in_features=6, out_features=4, bias=True)
    """
    shapes, records = shapes_in(checkpoint["state_dict"]), records_of_checkpoint(checkpoint)
    refuse_others(module, shapes, records, "the checkpoint", larger=True)
    with unchanged_on_failure(module, {}):
        fit_(module, shapes, records)


def refuse_others(
    module: nn.Module, shapes: Shapes, records: list[PruningRecord], what: str, larger: bool = False
) -> None:
    """Check that pruning can have made a checkpoint from a network.

    Raises:
        PlanError: It cannot.
    """
    reasons = misfit_reasons(module, shapes, records, larger)
    if reasons:
        name = min(reasons, key=[*shapes].index)
        more = f" ({len(reasons) - 1} more tensors differ)" if len(reasons) > 1 else ""
        raise PlanError(
            f"Expected {what} to be one of {type(module).__name__} as it is built here, but pruning cannot have made "
            f"its `{name}`: {reasons[name]}{more}. Build the same network as was saved, unpruned. Nothing was changed."
        )


def load_pruned(
    path: str | Path | IO[bytes], model: nn.Module, map_location: Any = "cpu", weights_only: bool = True
) -> nn.Module:
    """Load a pruned network's checkpoint into a freshly built, unpruned one.

    A checkpoint that was written after a prune (by the callback, or from the ``state_dict()`` of a pruned network)
    tells what the network was before: another number of classes, another kernel or another embedding is refused, name
    by name. A state dict without that (made by hand, or read from another format) is only checked for what modules of
    torch show by themselves: kernels, rows of embeddings, that nothing grew, and that weight, bias and statistics of a
    module go together. It does not tell a network with fewer classes, or whose layers do not fit one another, from a
    pruned one, nor how many heads an attention keeps.

    Args:
        path: A Lightning checkpoint, or a file that ``torch.save`` made of a state dict.
        model: The network as its code builds it, or a part of what was saved (``module.backbone``, say). It is changed
            in place.
        map_location: As in :func:`torch.load`.
        weights_only: As in :func:`torch.load`: with ``True`` only plain data is read. ``False``, for files whose
            hyper-parameters are objects, runs code that the file holds: use it on files that you trust.

    Returns:
        ``model``, with the checkpoint's shapes and weights.

    Raises:
        PlanError: The file cannot be read, or is the checkpoint of another network. Nothing was changed then.

    Example:
        >>> import io
        >>> import torch
        >>> file = io.BytesIO()
        >>> torch.save(nn.Linear(8, 3).state_dict(), file)
        >>> _ = file.seek(0)
        >>> load_pruned(file, nn.Linear(8, 4))
        Linear(in_features=8, out_features=3, bias=True)
    """
    loaded = read_checkpoint(path, map_location, weights_only)
    state_dict = loaded.get("state_dict", loaded)
    prefix = _common_prefix(set(state_dict), model, str(path))
    own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    records = [record.moved(prefix.removesuffix("."), "") for record in records_of_checkpoint(loaded)]
    shapes = shapes_in(own)
    refuse_others(model, shapes, records, str(path))
    with unchanged_on_failure(model, shapes):
        fit_(model, shapes, records)
        try:
            model.load_state_dict(own)
        except RuntimeError as error:
            raise PlanError(f"{path} is a checkpoint of another network: {error}") from error
    return model


def _common_prefix(keys: set[str], model: nn.Module, path: str) -> str:
    """Return what precedes the model's names in a checkpoint's."""
    names = list(model.state_dict())
    if not names:
        return ""
    candidates = {key.removesuffix(names[0]) for key in keys if key == names[0] or key.endswith(f".{names[0]}")}
    fitting = [p for p in sorted(candidates, key=len) if all(p + name in keys for name in names)]
    if not fitting:
        absent = [name for name in names if not any(key.endswith(name) for key in keys)][:5]
        raise PlanError(
            f"{path} is a checkpoint of another network: it has no `{', '.join(absent or names[:3])}` beside the rest "
            f"of {type(model).__name__}'s parameters. Build the same network as was saved, unpruned."
        )
    return fitting[0]
