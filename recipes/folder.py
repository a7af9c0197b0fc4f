"""The files that a run writes into its folder for later stages and later runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from lightning_taylor_prune import PlanError, load_pruned
from recipes.errors import RecipeError

ORIGINAL, PRUNED, RETRAINED = "original.pt", "pruned.pt", "retrained.pt"  # networks
PRUNING, TEST, RESULTS = "pruning.json", "test.json", "results.json"  # how pruning went; test images; the report's data
OUTCOME = "outcome.json"  # parameters and held-out accuracy of the last network, for sweeps
MADE_BY = {ORIGINAL: "train", PRUNED: "prune", RETRAINED: "retrain", PRUNING: "prune"}


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Have ``write`` make a file beside ``path``, and put it there once it is complete and on the disk.

    Nothing goes through the folder for temporary files: from another file system a file cannot be moved in one step.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write plain data as JSON, whole or not at all."""
    write_whole(path, lambda part: part.write_text(json.dumps(content, indent=1) + "\n", "utf-8"))


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a Trainer's checkpoints whole or not at all, also where the folder for temporary files lies elsewhere."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; a failure keeps the one before."""
        if storage_options is not None:
            raise TypeError(f"{type(self).__name__} takes no `storage_options`, but got {storage_options!r}.")
        write_whole(Path(path), lambda part: torch.save(checkpoint, part))


def digest(network: nn.Module) -> str:
    """Return a fingerprint of a network's weights."""
    whole = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        whole.update(name.encode())
        whole.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


@dataclass(frozen=True)
class RunFolder:
    """The folder that a run writes, and the earlier run that it continues.

    Args:
        output: Folder that this run writes to.
        earlier: Folder in which to look for what ``output`` does not hold; often the same.
    """

    output: Path
    earlier: Path

    def find(self, name: str) -> Path | None:
        """Return where a file lies, None if nowhere."""
        places = (folder / name for folder in (self.output, self.earlier))
        return next((path for path in places if path.is_file()), None)

    def need(self, name: str, stage: str) -> Path:
        """Return where a file lies that ``stage`` starts from."""
        if (path := self.find(name)) is None:
            maker = MADE_BY[name]
            weights = ", or `weights=` to a checkpoint" if name == ORIGINAL else ""
            raise RecipeError(
                f"Nothing to go on from: stage `{stage}` needs {name}, which stage `{maker}` makes, and {self.earlier} "
                f"has none. Add `{maker}` to `stage`, or set `run=` to the folder of a run that has it{weights}"
            )
        return path

    def save_network(self, network: nn.Module, name: str) -> None:
        """Save a network, pruned or not, so that :func:`lightning_taylor_prune.load_pruned` reads it."""
        write_whole(self.output / name, lambda part: torch.save({"state_dict": network.state_dict()}, part))

    def load_network(self, network: nn.Module, name: str, stage: str) -> nn.Module:
        """Give a freshly built network the shapes and weights of a saved one, in place."""
        path = self.need(name, stage)
        try:
            return load_pruned(path, network)
        except PlanError as error:
            raise RecipeError(f"{path} does not fit `model`: {error}") from error

    def read_json(self, name: str, stage: str) -> Any:
        """Read plain data that an earlier stage wrote."""
        return json.loads(self.need(name, stage).read_text("utf-8"))

    def unfinished(self, stage: str) -> Path:
        """Return where the state of ``stage`` lies while it is not finished."""
        return self.output / f"{stage}.unfinished.ckpt"

    def still_to_do(self, stages: Sequence[str]) -> list[str]:
        """Return ``stages`` from the one that was interrupted here on; all of them if none was."""
        begun = [i for i, stage in enumerate(stages) if self.unfinished(stage).is_file()]
        return list(stages[begun[-1] if begun else 0 :])
