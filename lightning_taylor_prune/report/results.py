"""What a pruning run found out, as plain immutable data that can be saved as JSON and loaded again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lightning_taylor_prune.groups.families import layer_name
from lightning_taylor_prune.groups.groups import ChannelGroups

BYTES_PER_PARAMETER = 4  # float32
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Latency:
    """Measured time of one forward pass, and the conditions.

    Attributes:
        median_ms: Median time in milliseconds.
        low_ms: 10th percentile.
        high_ms: 90th percentile.
        repeats: Timed passes.
        batch_size: Examples in one pass.
        device: The device in words, such as ``"CPU, 2 threads"`` or ``"NVIDIA H100"``.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int
    batch_size: int
    device: str

    @classmethod
    def of(cls, seconds: Sequence[float], batch_size: int, device: str) -> Latency:
        """Sum up timed passes, in seconds each."""
        low, median, high = (1000 * float(q) for q in np.percentile(seconds, [10, 50, 90]))
        return cls(median, low, high, len(seconds), batch_size, device)


@dataclass(frozen=True)
class NetworkResult:
    """What is known of one network.

    Attributes:
        params: Learnable parameters.
        macs: Multiply-accumulate operations for one example.
        filters: Filters of convolutions and units of linear layers.
        accuracy: Accuracy on the test examples, 0 to 1.
        filters_per_layer: Filters of each layer by name.
        confusion: Test examples of each true class (row) that were taken for each class (column): counts, shape
            ``[classes, classes]``, as nested tuples (a tensor or an array is turned into them).
        latency: Measured time of a forward pass.
    """

    params: int
    macs: int
    filters: int
    accuracy: float
    filters_per_layer: Mapping[str, int] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] | None = None
    latency: Latency | None = None

    def __post_init__(self) -> None:
        if self.confusion is not None:
            object.__setattr__(self, "confusion", _square(self.confusion))

    @property
    def megabytes(self) -> float:
        """Memory of the parameters in float32, in MB of 2**20 bytes."""
        return self.params * BYTES_PER_PARAMETER / MEBIBYTE


@dataclass(frozen=True)
class Progress:
    """How a pruning run went.

    Attributes:
        loss_iterations: Iterations at which the training losses were taken.
        losses: Training loss of one mini-batch each.
        iterations: Iterations at which accuracy and filters were taken: 0, then one per prune.
        accuracies: Validation accuracy at these iterations, 0 to 1; NaN where it was not measured.
        num_prunable_filters: Filters that could still be pruned at these iterations.
        taken_back: Iterations of the prunes that were taken back, as they spoilt a metric.
    """

    loss_iterations: Sequence[int]
    losses: Sequence[float]
    iterations: Sequence[int]
    accuracies: Sequence[float]
    num_prunable_filters: Sequence[int]
    taken_back: Sequence[int] = ()


@dataclass(frozen=True)
class GroupResult:
    """A group of units, and how many of them were kept.

    Attributes:
        name: Name of the group, which is the layer that writes it first.
        layers: All layers that write it: one, or those of a residual stream.
        units_before: Units of the original network.
        units_after: Units of the pruned network.
    """

    name: str
    layers: tuple[str, ...]
    units_before: int
    units_after: int


@dataclass(frozen=True)
class Results:
    """All that a report tells. Plain data: no network and no image.

    Attributes:
        title: Heading of the report.
        command: What was typed to make the run.
        class_names: Name of each class, in the order of the confusion matrices.
        original: The network before pruning.
        pruned: The network after pruning and retraining.
        progress: Losses and accuracies while pruning; ``None`` if they were not kept.
        history: Rows of :attr:`TaylorPruningCallback.history <lightning_taylor_prune.TaylorPruningCallback>`.
        groups: Units per group, from :func:`groups_of`.
        notes: Remarks for the reader, one paragraph each.
        environment: Versions, device and the like, by name.
    """

    title: str
    command: str
    class_names: tuple[str, ...]
    original: NetworkResult
    pruned: NetworkResult
    progress: Progress | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    groups: tuple[GroupResult, ...] = ()
    notes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("class_names", "history", "groups", "notes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if unmatched := self.original.filters_per_layer.keys() ^ self.pruned.filters_per_layer.keys():
            raise ValueError(
                "Expected `filters_per_layer` of both networks to name the same layers, but only one of them has "
                f"{', '.join(sorted(unmatched))}."
            )
        for which, network in (("original", self.original), ("pruned", self.pruned)):
            if network.confusion is not None and len(network.confusion) != len(self.class_names):
                raise ValueError(
                    f"Expected a confusion matrix of {len(self.class_names)} classes, as many as `class_names`, but "
                    f"that of the {which} network has {len(network.confusion)}."
                )

    def save(self, path: Path | str) -> Path:
        """Write everything as JSON; what is not finite becomes ``null``."""
        path = Path(path)
        path.write_text(json.dumps(_finite(asdict(self)), allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path | str) -> Results:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: The file holds something else.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            return _results(data)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"Expected {path} to hold what Results.save wrote, but reading it failed ({type(error).__name__}: "
                f"{error}). Write it anew with this version."
            ) from error


def groups_of(groups: ChannelGroups) -> tuple[GroupResult, ...]:
    """Sum up the groups of a pruned network (``callback.groups``), largest loss of units not considered."""
    return tuple(
        GroupResult(
            group.name,
            tuple(dict.fromkeys(layer_name(s.tensor) for s in group.slices if s.role == "writer")) or (group.name,),
            group.original_num_channels,
            group.num_channels,
        )
        for group in groups
    )


def _square(confusion: Any) -> tuple[tuple[int, ...], ...]:
    """Turn counts into nested tuples of ints; raise where they are no square."""
    rows = confusion.tolist() if hasattr(confusion, "tolist") else confusion
    counts = tuple(tuple(int(count) for count in row) for row in rows)
    if any(len(row) != len(counts) for row in counts):
        raise ValueError(
            f"Expected `confusion` of shape [classes, classes], but got {len(counts)} rows of length "
            f"{', '.join(str(n) for n in sorted({len(row) for row in counts}))}."
        )
    return counts


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not know by None, at any depth."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _results(data: dict[str, Any]) -> Results:
    nested = {
        "original": _network(data["original"]),
        "pruned": _network(data["pruned"]),
        "progress": None if data["progress"] is None else _progress(data["progress"]),
        "groups": tuple(GroupResult(**{**group, "layers": tuple(group["layers"])}) for group in data["groups"]),
    }
    return Results(**{**data, **nested})


def _network(data: dict[str, Any]) -> NetworkResult:
    latency = None if data["latency"] is None else Latency(**data["latency"])
    accuracy = math.nan if data["accuracy"] is None else data["accuracy"]
    return NetworkResult(**{**data, "latency": latency, "accuracy": accuracy})


def _progress(data: dict[str, Any]) -> Progress:
    lists: dict[str, Any] = {n: tuple(math.nan if x is None else x for x in values) for n, values in data.items()}
    return Progress(**lists)
