"""Lightning's `ModelPruning` beside this package's callback: it puts masks on layers, and keeps copies of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from lightning.pytorch import LightningModule, Trainer

from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.pruning.holders import Copy
from lightning_taylor_prune.pruning.move import take

_MASKED = "{}_orig"
"""What torch calls a parameter below a mask."""


def layers_of_masks(trainer: Trainer, pl_module: LightningModule) -> Iterator[tuple[int, Copy]]:
    """Yield the layers that Lightning's `ModelPruning` keeps, to reset the network's to (a lottery ticket), as copies.

    It has them by the identity of the network's layer; that may have masks by now, and its weight another name.
    """
    names = {id(module): name for name, module in pl_module.named_modules()}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not any(cls.__name__ == "ModelPruning" for cls in type(callback).__mro__):
            continue
        for layer, held in (callback._original_layers or {}).items():
            if layer in names:
                own, table = pl_module.get_submodule(names[layer]), held["data"]._parameters
                masked = {leaf: _MASKED.format(leaf) for leaf in table}
                now = {leaf: name if name in own._parameters else leaf for leaf, name in masked.items()}
                tensors = {f"{names[layer]}.{now[leaf]}": t for leaf, t in table.items() if t is not None}
                yield id(held["data"]), Copy(tensors, table, names[layer])


def cut_layers_of_masks(trainer: Trainer, pl_module: LightningModule, groups: ChannelGroups) -> None:
    """Cut layers that `ModelPruning` has copied, as a training is resumed, from the network before it was pruned.

    Args:
        trainer: The Trainer.
        pl_module: The module, with the sizes of the checkpoint.
        groups: Its groups as they are now.
    """
    unpruned, kept = groups.unpruned(), groups.kept_units()
    lost = {g.name: np.setdiff1d(np.arange(g.num_channels), kept[g.name]).tolist() for g in unpruned}
    cuts = dict(unpruned.plan(lost).by_tensor())
    for _, layer in layers_of_masks(trainer, pl_module):
        for name, tensor in layer.tensors.items():
            own = cuts.get(name, ())
            if own and all(tensor.shape[cut.dim] == cut.size for cut in own):
                tensor.data = take(tensor, own)
