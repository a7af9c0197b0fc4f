"""Read files that `torch.save` wrote; one that is damaged is said to be so in one line."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from lightning_taylor_prune.errors import PlanError


def read_checkpoint(path: str | Path | IO[bytes], map_location: Any, weights_only: bool) -> Mapping[str, Any]:
    """Read a checkpoint or a state dict.

    Args:
        path: The file.
        map_location: As in :func:`torch.load`.
        weights_only: As in :func:`torch.load`.

    Raises:
        PlanError: The file is damaged, holds something else, or objects although ``weights_only`` is set.
        OSError: There is no such file, or it must not be read.
    """
    try:
        damaged = _damaged_part(path)
        loaded = None if damaged else torch.load(path, map_location=map_location, weights_only=weights_only)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # a damaged pickle can end in any of them
        raise PlanError(_unreadable(path, error, weights_only)) from error
    if damaged is not None:
        raise PlanError(_words(path, f"the checksum of its part {damaged!r} is wrong"))
    state_dict = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state_dict, Mapping) or not all(isinstance(name, str) for name in state_dict):
        raise PlanError(
            f"Expected {path} to hold a Lightning checkpoint or a state dict, but got a {type(state_dict).__name__}. "
            "Save `module.state_dict()`, or use `trainer.save_checkpoint`."
        )
    assert isinstance(loaded, Mapping)
    return loaded


def _unreadable(path: str | Path | IO[bytes], error: Exception, weights_only: bool) -> str:
    lines = str(error).splitlines()
    if weights_only and isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
        what, *_ = [line.strip() for line in lines if "Unsupported global" in line]
        return (
            f"Expected {path} to hold plain data only, but it holds objects ({what[:200]}). If you trust the file, "
            "load it with `weights_only=False`."
        )
    return _words(path, (lines or [""])[0][:200] or type(error).__name__)


def _words(path: str | Path | IO[bytes], why: str) -> str:
    return (
        f"Expected {path} to be a file that `torch.save` or a Trainer wrote, but it cannot be read: it is empty, "
        f"truncated or damaged ({why}). Copy or save it again."
    )


def _damaged_part(path: str | Path | IO[bytes]) -> str | None:
    """Return a part of a file whose content does not have the checksum that is noted for it: torch does not look.

    Files can be written without checksums (:func:`torch.serialization.set_crc32_options`); then all of them are wrong.
    """
    if isinstance(path, (str, Path)):
        return _damaged_part_of_archive(path)
    place = path.tell()
    try:
        return _damaged_part_of_archive(path)
    finally:
        path.seek(place)


def _damaged_part_of_archive(path: str | Path | IO[bytes]) -> str | None:
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
        wrong = [name for name in names if not _has_its_checksum(file, name)]
    return wrong[0] if 0 < len(wrong) < len(names) else None


def _has_its_checksum(file: zipfile.ZipFile, name: str) -> bool:
    try:
        with file.open(name) as part:
            while part.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return False
    return True
