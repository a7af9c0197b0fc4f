"""Measured times of a network's operators, from which the latency of any plan follows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_taylor_prune.errors import ArgumentError, PruningWarning
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.latency import cache
from lightning_taylor_prune.latency.cache import Conditions, Measured, cache_folder
from lightning_taylor_prune.latency.curves import TimeOf, time_of
from lightning_taylor_prune.latency.measuring import Campaign
from lightning_taylor_prune.latency.program import Part, Program
from lightning_taylor_prune.latency.replay import Layout
from lightning_taylor_prune.latency.steps import Units
from lightning_taylor_prune.latency.timing import Stopwatch, TimePart
from lightning_taylor_prune.latency.widths import best_multiples, milliseconds_per_unit


class LatencyTable:
    """Measured times per operator and channel count, on one device: they tell how long any pruned network takes.

    A network's latency is the sum of the times of the operators that it runs in evaluation mode. Each is measured with
    :class:`torch.utils.benchmark.Timer` at a grid of channel counts, multiples of 32, 16, 8 and 4 and others apart,
    as kernels take several channels at once; between these, times are interpolated. On the CPU there is added what it
    takes to get memory for results, and what operators take longer after others than by themselves.

    Make one with :meth:`measure`; it is kept on disk. All methods are fast then. Under several processes let one
    measure, and hand the others its :meth:`to_json`: with other times they would choose other units.

    Attributes:
        conditions: Device, version of torch, threads, dtype and memory format.
        times: By operator and numbers of units: seconds, or ``None`` where the operator cannot run.

    Example:
        >>> from lightning_taylor_prune import find_groups
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> groups = find_groups(net, torch.zeros(1, 3, 8, 8))
        >>> table = LatencyTable.measure(groups, cache_dir=False, max_seconds=1, progress=False)
        >>> table.latency(groups) > 0
        True
    """

    def __init__(self, conditions: Conditions, times: Measured) -> None:
        self.conditions, self.times = conditions, times
        self._programs: WeakKeyDictionary[Structure, Program] = WeakKeyDictionary()
        self._multiples: WeakKeyDictionary[Structure, dict[bytes, dict[str, int]]] = WeakKeyDictionary()
        self._functions: dict[str, TimeOf] = {}
        self._seconds: dict[tuple[str, Units], float] = {}

    @classmethod
    def measure(
        cls,
        groups: ChannelGroups,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        channels_last: bool | None = None,
        num_threads: int | None = None,
        max_seconds: float = 120,
        cache_dir: str | PathLike[str] | bool | None = None,
        progress: bool = True,
        time_part: TimePart | None = None,
    ) -> LatencyTable:
        """Measure the operators of a network; what is in the cache is not measured again.

        All are measured unpruned first, then the dearest ones at ever finer grids until the time is over. A run that
        was ended is continued by the next one.

        Args:
            groups: The groups of the network; their example input sets the batch size and resolution.
            device: Where to measure; by default where the network was when it was analysed.
            dtype: Of parameters and input; by default as the network was analysed, autocast included.
            channels_last: Measure with channels innermost in memory (or not); by default as it was analysed.
            num_threads: Threads on the CPU; by default those of torch now.
            max_seconds: When to stop refining. One time per operator is always measured.
            cache_dir: Folder of the cache; by default ``lightning_taylor_prune`` in ``$XDG_CACHE_HOME`` or
                ``~/.cache``. ``False``: no cache.
            progress: Show a progress bar.
            time_part: What times an operator; by default :class:`~lightning_taylor_prune.latency.timing.Stopwatch`.

        Raises:
            ArgumentError: An argument cannot be used.
        """
        if isinstance(max_seconds, bool) or not isinstance(max_seconds, (int, float)) or not max_seconds > 0:
            raise ArgumentError(f"Expected argument `max_seconds` to be a positive number, but got {max_seconds!r}.")
        place, threads = _device(groups, device), _threads(num_threads)
        layout = Layout(dtype, channels_last)
        conditions = Conditions.of(place, layout, threads)
        path = None if cache_dir is False else _folder(cache_dir) / conditions.file_name
        table = cls(conditions, {} if path is None else _cached(path, conditions))
        campaign = Campaign(
            table.program(groups), table.times, time_part or Stopwatch(place, threads), table._writer(path)
        )
        campaign.run(max_seconds, progress)
        if failed := campaign.failed:
            warnings.warn(
                f"The times of {len(failed)} operators are unknown, as these cannot be run by themselves; the table "
                f"counts them as 0: {'; '.join(failed[:4])}",
                PruningWarning,
                stacklevel=2,
            )
        return table

    @classmethod
    def load(cls, path: str | PathLike[str], any_conditions: bool = False) -> LatencyTable:
        """Read a table that :meth:`save` wrote, or one of the cache.

        Args:
            path: The file.
            any_conditions: Accept one of another device or version of torch: to prune for a device that this is not.

        Raises:
            ArgumentError: The file cannot be read, is damaged, or of another device or version of torch.
        """
        conditions, times = cache.read(Path(path))
        if not any_conditions and (here := _other_here(conditions)):
            raise ArgumentError(
                f"Expected the latency table {path} to be of this machine, but it is of {here}. Measure here with "
                "`LatencyTable.measure`, or load it with `any_conditions=True` to prune for that machine."
            )
        return cls(conditions, times)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the table to a file; one that is there is replaced as a whole."""
        cache.write(Path(path), self.to_json())

    def to_json(self) -> str:
        """Return the table as text: for another process, say, so that all ranks have the same times."""
        return cache.encode(self.conditions, self.times)

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """Return the table that :meth:`to_json` turned into text.

        Raises:
            ArgumentError: The text is something else.
        """
        return cls(*cache.decode(text, "argument `text`"))

    def latency(self, groups: ChannelGroups) -> float:
        """Return how long one forward pass takes in milliseconds, with the example input's batch size.

        Args:
            groups: The groups of the network, in any state: ``groups.after(plan)``, ``groups.unpruned()``.

        Raises:
            ArgumentError: The table was measured on another network and lacks some of its operators.
        """
        program = self.program(groups)
        units = program.sizes.units(groups.structure.counts(groups.kept))
        return 1e3 * sum(
            calls * self.seconds(part, tuple(units[number] for number in numbers))
            for part, numbers, calls in program.parts
        )

    def unit_latency(self, groups: ChannelGroups) -> Tensor:
        """Return how many milliseconds one unit of each group costs now, shape ``[groups.num_units]``.

        It is the mean over as many units as kernels take at once, or a quarter of the group: one unit alone saves
        nothing until the next step is reached. Where removing units saves nothing it is 0.
        """
        return milliseconds_per_unit(self.program(groups), groups, self.seconds)

    def best_multiple(self, groups: ChannelGroups) -> dict[str, int]:
        """Return for every group the multiple of channels at which its layers run fast: what ``round_to="auto"`` means.

        It is the smallest of 1, 4, 8, 16 and 32 such that networks whose channels are rounded to it, up or down, are
        as fast as can be; 1 where rounding buys nothing.
        """
        key = groups.kept.tobytes()
        known = self._multiples.setdefault(groups.structure, {})
        if key not in known:
            known[key] = best_multiples(self.program(groups), groups, self.seconds)
        return known[key]

    def program(self, groups: ChannelGroups) -> Program:
        """Return the operators that the network runs, in this table's dtype and memory format."""
        found = self._programs.get(groups.structure)
        if found is None:
            on_cpu = self.conditions.device_type == "cpu"
            found = self._programs[groups.structure] = Program.of(groups, self.conditions.layout, on_cpu)
        return found

    def seconds(self, part: Part, units: Units) -> float:
        """Return the time of one operator at given numbers of units.

        Raises:
            ArgumentError: It was not measured.
        """
        key = part.key, units
        if key not in self._seconds:
            if part.key not in self._functions:
                self._functions[part.key] = self._time_of(part)
            self._seconds[key] = self._functions[part.key](units)
        return self._seconds[key]

    def _time_of(self, part: Part) -> TimeOf:
        times = self.times.get(part.key, {})
        if part.full not in times:
            raise ArgumentError(
                f"The latency table has no times of operator {part.key}: it was measured on another network, input "
                "shape or batch size. Measure with the groups of this one."
            )
        known = {units: seconds for units, seconds in times.items() if seconds is not None}
        return time_of(part, known) if part.full in known else lambda units: 0.0

    def _writer(self, path: Path | None) -> Callable[[], None]:
        """Return what writes the table to the cache."""

        def write() -> None:
            if path is None:
                return
            try:
                self.save(path)
            except OSError as error:
                _warn(f"The latency table cannot be kept at {path}: {error}. It will be measured again next time.")

        return write

    def __getstate__(self) -> dict[str, object]:
        return {"conditions": self.conditions, "times": self.times}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _device(groups: ChannelGroups, device: torch.device | str | None) -> torch.device:
    """Return where to measure."""
    if device is not None:
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise ArgumentError(f"Expected argument `device` to be a device, but got {device!r}: {error}") from error
    tensors = groups.structure.propagation.traces[0].tensors.values()
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _threads(num_threads: int | None) -> int:
    if num_threads is None:
        return torch.get_num_threads()
    if isinstance(num_threads, bool) or not isinstance(num_threads, int) or num_threads < 1:
        raise ArgumentError(f"Expected argument `num_threads` to be an int of at least 1, but got {num_threads!r}.")
    return num_threads


def _folder(cache_dir: str | PathLike[str] | bool | None) -> Path:
    if cache_dir is None:
        return cache_folder()
    if isinstance(cache_dir, bool):
        raise ArgumentError("Expected argument `cache_dir` to be a folder, `None` or `False`, but got True.")
    return Path(cache_dir)


def _cached(path: Path, conditions: Conditions) -> Measured:
    """Return the times in the cache; a file there that cannot be used is reported and measured anew."""
    if not path.exists():
        return {}
    try:
        found, times = cache.read(path)
    except ArgumentError as error:
        _warn(f"{error} All times are measured again, and the file is replaced.")
        return {}
    if found != conditions:
        _warn(f"The latency table {path} is of {found}, not of {conditions}. All times are measured again.")
        return {}
    return times


def _other_here(conditions: Conditions) -> str:
    """Return the device and version of torch of a table, if this machine has others."""
    places = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    if conditions.torch_version == torch.__version__ and conditions.device in map(cache.device_name, places):
        return ""
    here = f"{', '.join(dict.fromkeys(map(cache.device_name, places)))} with torch {torch.__version__}"
    return f"{conditions.device} with torch {conditions.torch_version}, and this is {here}"


def _warn(text: str) -> None:
    warnings.warn(text, PruningWarning, stacklevel=4)
