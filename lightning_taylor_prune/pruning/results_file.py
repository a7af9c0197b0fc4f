"""A file of results that grows line by line, so that work that was cut short can go on."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from lightning_taylor_prune.errors import ArgumentError

FORMAT = "lightning_taylor_prune sensitivity 1"


class ResultsFile:
    """Results by key, each written to a file as a line of JSON at once; without a file they are only kept.

    Args:
        values: What is known.
        file: Where further results are written.
    """

    def __init__(self, values: dict[str, float], file: IO[bytes] | None = None) -> None:
        self._values, self._file = values, file

    @staticmethod
    @contextlib.contextmanager
    def open(path: str | Path | None, identity: Mapping[str, Any]) -> Iterator[ResultsFile]:
        """Read the results so far, and go on writing there.

        A last line that was cut short is dropped.

        Args:
            path: The file; it is created if it is missing, with its folder.
            identity: What the results are of; a file that says something else is refused and not changed.

        Raises:
            ArgumentError: The file holds something else, or is damaged.
        """
        if path is None:
            yield ResultsFile({})
            return
        path = Path(path)
        values, length = _read(path, identity) if _exists(path) else ({}, _create(path, identity))
        with path.open("r+b") as file:
            file.truncate(length)
            file.seek(length)
            yield ResultsFile(values, file)

    def get(self, key: str) -> float | None:
        """Return a result, if it is known."""
        return self._values.get(key)

    def add(self, key: str, value: float) -> None:
        """Add a result; it is on the disk when this returns."""
        self._values[key] = value
        if self._file is not None:
            self._file.write(_line({"key": key, "value": value if math.isfinite(value) else str(value)}))
            self._file.flush()
            os.fsync(self._file.fileno())


def _exists(path: Path) -> bool:
    if path.exists() and not path.is_file():
        raise ArgumentError(f"Expected argument `cache` to be a file, but {path} is a folder.")
    return path.is_file() and path.stat().st_size > 0


def _line(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data).encode() + b"\n"


def _create(path: Path, identity: Mapping[str, Any]) -> int:
    """Write the first line, whole or not at all; returns its length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = _line({"format": FORMAT, **identity})
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(line)
    new.replace(path)
    return len(line)


def _read(path: Path, identity: Mapping[str, Any]) -> tuple[dict[str, float], int]:
    """Return the results in a file, and the length of all its whole lines."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    first, *lines = whole.splitlines() or [data[:100]]
    _check_identity(path, first, identity)
    values = {}
    for number, line in enumerate(lines, 2):
        try:
            record = json.loads(line)
            values[str(record["key"])] = float(record["value"])
        except (ValueError, TypeError, KeyError) as error:
            raise ArgumentError(
                f"Expected argument `cache` to name results of an earlier call, but line {number} of {path} is "
                "damaged; remove that line or the file."
            ) from error
    return values, len(whole)


def _check_identity(path: Path, line: bytes, identity: Mapping[str, Any]) -> None:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ArgumentError(f"Expected argument `cache` to name results of an earlier call, but {path} holds others.")
    different = [name for name, value in identity.items() if found.get(name) != value]
    if different:
        what = f"other {different[0]}" if different[0] in ("ratios", "scores") else f"another {different[0]}"
        raise ArgumentError(f"The results in {path} are of {what}: name another file as `cache`, or delete this one.")
