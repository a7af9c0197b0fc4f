"""Measured times in a file."""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_taylor_prune.errors import ArgumentError
from lightning_taylor_prune.latency.replay import Layout
from lightning_taylor_prune.latency.steps import Units

_FORMAT = 1

Measured = dict[str, dict[Units, float | None]]
"""By operator and numbers of units: seconds, ``None`` where the operator cannot run."""


@dataclass(frozen=True)
class Conditions:
    """Under which conditions times were measured.

    Attributes:
        device: Name of the device.
        device_type: Its type: ``"cpu"``, say.
        torch_version: Version of torch.
        num_threads: Threads on the CPU.
        dtype: Type that the network was given; ``None``: as it was traced.
        channels_last: Memory format that it was given; ``None``: as it was traced.
    """

    device: str
    device_type: str
    torch_version: str
    num_threads: int
    dtype: str | None
    channels_last: bool | None

    @staticmethod
    def of(device: torch.device, layout: Layout, num_threads: int) -> Conditions:
        """Describe this machine."""
        dtype = None if layout.dtype is None else str(layout.dtype).removeprefix("torch.")
        return Conditions(device_name(device), device.type, torch.__version__, num_threads, dtype, layout.channels_last)

    @property
    def layout(self) -> Layout:
        """Type and memory format."""
        return Layout(None if self.dtype is None else getattr(torch, self.dtype), self.channels_last)

    @property
    def file_name(self) -> str:
        """Name of the file in the cache."""
        layout = {True: "channels-last", False: "contiguous", None: "as-traced"}[self.channels_last]
        words = (
            f"{self.device} torch {self.torch_version} {self.num_threads} threads {self.dtype or 'own dtype'} {layout}"
        )
        return f"latency-{re.sub('[^a-z0-9.]+', '-', words.lower()).strip('-')}.json"


def device_name(device: torch.device) -> str:
    """Return the name of a device, of the processor for the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type} of {platform.node()}"
    return f"{_processor()} {torch.backends.cpu.get_cpu_capability()}"


def _processor() -> str:
    """Return what the system calls its processor."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def cache_folder() -> Path:
    """Return where tables are kept: ``lightning_taylor_prune`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lightning_taylor_prune"


def encode(conditions: Conditions, measured: Mapping[str, Mapping[Units, float | None]]) -> str:
    """Return times as JSON."""
    operators = {key: [[list(units), seconds] for units, seconds in times.items()] for key, times in measured.items()}
    return json.dumps({"format": _FORMAT, "conditions": asdict(conditions), "operators": operators}, indent=0)


def decode(text: str, where: str) -> tuple[Conditions, Measured]:
    """Return what :func:`encode` wrote.

    Args:
        text: JSON.
        where: Where it comes from, for the message.

    Raises:
        ArgumentError: It is something else, or damaged.
    """
    try:
        content = json.loads(text)
        if content["format"] != _FORMAT:
            raise ValueError(f"it has format {content['format']}, not {_FORMAT}")
        operators = {key: {tuple(u): _seconds(t) for u, t in times} for key, times in content["operators"].items()}
        conditions = Conditions(**content["conditions"])
        assert conditions.layout is not None  # there is such a dtype
        return conditions, operators
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArgumentError(
            f"Expected {where} to be a latency table, but it cannot be read ({type(error).__name__}: {error}). Delete "
            "it and measure anew."
        ) from error


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError(f"expected a time in seconds, but got {value!r}")
    return float(value)


def read(path: Path) -> tuple[Conditions, Measured]:
    """Read a file.

    Raises:
        ArgumentError: There is none, or it is no table.
    """
    try:
        return decode(path.read_text(encoding="utf-8"), f"the file {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(
            f"Expected {path} to be the file of a latency table, but it cannot be read ({error}). Name another one, or "
            "measure with `LatencyTable.measure` and write it with `save`."
        ) from error


def write(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
