"""How much a metric suffers when a share of one group's units is removed, measured on networks that are really cut."""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_taylor_prune.criteria.criterion import CRITERIA
from lightning_taylor_prune.errors import ArgumentError, PlanError, PruningWarning, VerificationError
from lightning_taylor_prune.groups.group import ChannelGroup
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.pruning.constraints import check_bool, check_choice
from lightning_taylor_prune.pruning.evaluation import Metric, evaluate
from lightning_taylor_prune.pruning.prune import prune_, refuse_wrappers
from lightning_taylor_prune.pruning.results_file import ResultsFile
from lightning_taylor_prune.pruning.steps import steps


@dataclass(frozen=True)
class Sensitivity:
    """The metric of a network that has lost a share of one group's units and nothing else.

    Attributes:
        group: Name of the group.
        ratio: The share that was asked for, in (0, 1).
        removed: How many units that is; a group keeps at least one.
        units: How many there were.
        value: The metric; NaN where the network's code refused the cut.
    """

    group: str
    ratio: float
    removed: int
    units: int
    value: float


@dataclass(frozen=True)
class Sensitivities:
    """What :func:`sensitivity` measured; ``print`` shows a table.

    Attributes:
        baseline: The metric of the network as it is.
        ratios: The shares that were removed.
        points: One for every group and ratio, group after group.
    """

    baseline: float
    ratios: tuple[float, ...]
    points: tuple[Sensitivity, ...]

    def by_group(self) -> dict[str, tuple[Sensitivity, ...]]:
        """Return the points of every group, in the order of the ratios."""
        found: dict[str, list[Sensitivity]] = {}
        for point in self.points:
            found.setdefault(point.group, []).append(point)
        return {name: tuple(points) for name, points in found.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON; NaN becomes ``None``."""
        points = [{**vars(point), "value": _plain(point.value)} for point in self.points]
        return {"baseline": self.baseline, "ratios": list(self.ratios), "points": points}

    def __str__(self) -> str:
        rows = {name: [f"{point.value:.4f}" for point in points] for name, points in self.by_group().items()}
        table = [["group", *(f"{ratio:.0%}" for ratio in self.ratios)], *([name, *row] for name, row in rows.items())]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table]
        return "\n".join(
            [f"The metric is {self.baseline:.4f} with all units. With so many of one group removed:", *lines]
        )


def sensitivity(
    model: nn.Module,
    groups: ChannelGroups,
    data: Iterable[Any],
    metric: Metric,
    ratios: Sequence[float] = (0.1, 0.3, 0.5, 0.7),
    *,
    criterion: str | Tensor = "magnitude",
    cache: str | Path | None = None,
    progress: bool = True,
) -> Sensitivities:
    """Measure a metric after each group alone has lost a share of its units, in evaluation mode.

    For every group and ratio a copy of the network is really cut; the network itself is unchanged. The units of lowest
    score are removed. Every measurement sees the same data in the same order.

    Args:
        model: The network.
        groups: Its groups as it is now.
        data: Pairs of inputs (a tensor, a tuple of positional or a dict of keyword arguments) and targets, such as a
            DataLoader; read once for every measurement.
        metric: ``metric(outputs, targets)`` gives a number for a batch, of which the mean over all examples counts;
            or a ``torchmetrics.Metric``.
        ratios: Shares of each group's units, in (0, 1).
        criterion: Name of a criterion that needs no gradients, or one score per unit, shape ``[groups.num_units]``
            (``pruner.scores``, say).
        cache: File to which results are written as they come. If it is there, what it holds is not measured again;
            a file of another network, other scores or ratios is refused.
        progress: Show a progress bar on a terminal; elsewhere, the logger ``lightning_taylor_prune`` says at level
            INFO how far it is.

    Raises:
        ArgumentError: An argument cannot be used, nothing can be removed, or the cache is of something else.
        PlanError: The groups are not of this network.

    Example:
        >>> from lightning_taylor_prune import find_groups
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> data = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]
        >>> found = sensitivity(net, find_groups(net, data[0][0]), data, nn.functional.cross_entropy, progress=False)
        >>> [(point.ratio, point.removed) for point in found.by_group()["0"]]
        [(0.1, 1), (0.3, 2), (0.5, 4), (0.7, 6)]
    """
    _check(groups, data, ratios, metric)
    check_bool("progress", progress)
    refuse_wrappers(model)
    scores = _scores(model, groups, criterion)
    wanted = list(_wanted(groups, scores, ratios))
    with ResultsFile.open(cache, _identity(model, scores, ratios, metric)) as results:
        baseline = _baseline(model, data, metric, results)
        points = [
            _measured(model, groups, point, units, (data, metric), baseline, results)
            for point, units in steps(wanted, "Sensitivity of the groups", progress)
        ]
    return Sensitivities(baseline, tuple(ratios), tuple(points))


def _check(groups: ChannelGroups, data: Any, ratios: Any, metric: Any) -> None:
    if not isinstance(ratios, Sequence) or not ratios or not all(_is_share(ratio) for ratio in ratios):
        raise ArgumentError(f"Expected argument `ratios` to be numbers between 0 and 1, but got {ratios!r}.")
    if not isinstance(data, Iterable) or isinstance(data, Iterator):
        raise ArgumentError(
            "Expected argument `data` to be a DataLoader or a list of pairs, which can be read several times, but got "
            f"a {type(data).__name__}."
        )
    if not callable(metric):
        raise ArgumentError(
            "Expected argument `metric` to be a function of outputs and targets or a torchmetrics.Metric, but got "
            f"{metric!r}."
        )
    if not any(group.num_channels > 1 for group in groups):
        reasons = "; ".join(dict.fromkeys(f"{lock.name} {lock.reason}" for lock in groups.locked[:3]))
        raise ArgumentError(f"Expected argument `groups` to have units to remove, but it has none: {reasons}.")


def _is_share(ratio: Any) -> bool:
    return isinstance(ratio, (int, float)) and not isinstance(ratio, bool) and 0 < ratio < 1


def _scores(model: nn.Module, groups: ChannelGroups, criterion: str | Tensor) -> Tensor:
    """Return one score per unit, float64 on the CPU."""
    if isinstance(criterion, Tensor):
        if criterion.shape != (groups.num_units,):
            raise ArgumentError(
                f"Expected argument `criterion` to hold a score per unit, shape ({groups.num_units},), but got shape "
                f"{tuple(criterion.shape)}."
            )
        return criterion.detach().double().cpu()
    check_choice("criterion", criterion, [name for name, cls in CRITERIA.items() if not cls.needs_gradients])
    return CRITERIA[criterion](model, groups).compute().double().cpu()


def _wanted(
    groups: ChannelGroups, scores: Tensor, ratios: Sequence[float]
) -> Iterator[tuple[Sensitivity, tuple[int, ...]]]:
    """Yield what is to be measured, without its value, and the units to remove for it."""
    for group in groups:
        order = np.argsort(scores[group.first_unit : group.first_unit + group.num_channels].numpy(), kind="stable")
        for ratio in ratios:
            removed = _count(group, ratio)
            units = tuple(sorted(order[:removed].tolist()))
            yield Sensitivity(group.name, float(ratio), removed, group.num_channels, math.nan), units


def _count(group: ChannelGroup, ratio: float) -> int:
    return min(round(ratio * group.num_channels), group.num_channels - 1)


def _baseline(model: nn.Module, data: Iterable[Any], metric: Metric, results: ResultsFile) -> float:
    found = results.get("")
    if found is None:
        found = evaluate(_copy(model), data, metric)
        if not math.isfinite(found):
            raise ArgumentError(
                f"Expected argument `metric` to give a finite number, but with all units it is {found}."
            )
        results.add("", found)
    return found


def _measured(
    model: nn.Module,
    groups: ChannelGroups,
    point: Sensitivity,
    units: tuple[int, ...],
    test: tuple[Iterable[Any], Metric],
    baseline: float,
    results: ResultsFile,
) -> Sensitivity:
    """Return a point with its value: from the results so far, else measured and added to them."""
    key = f"{point.group}\0{point.removed}"
    value = results.get(key) if units else baseline
    if value is None:
        value = _value(model, groups, {point.group: units}, *test)
        results.add(key, value)
    return Sensitivity(point.group, point.ratio, point.removed, point.units, value)


def _value(
    model: nn.Module, groups: ChannelGroups, removed: Mapping[str, tuple[int, ...]], data: Iterable[Any], metric: Metric
) -> float:
    cut = _copy(model)
    try:
        prune_(cut, groups.plan(removed))
    except VerificationError as error:
        warnings.warn(f"No sensitivity of {', '.join(removed)}: {error}", PruningWarning, stacklevel=2)
        return math.nan
    return evaluate(cut, data, metric)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # any of the user's classes can refuse
        raise PlanError(
            f"The network cannot be copied to be cut: {type(error).__name__}: {error}. Remove what cannot be copied "
            "from its attributes, or measure a part of it."
        ) from error


def _identity(model: nn.Module, scores: Tensor, ratios: Sequence[float], metric: Metric) -> dict[str, Any]:
    """Return what tells whether results are of the same measurement."""
    weights = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        weights.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "network": weights.hexdigest(),
        "scores": hashlib.sha256(scores.numpy().tobytes()).hexdigest(),
        "ratios": [float(ratio) for ratio in ratios],
        "metric": getattr(metric, "__qualname__", type(metric).__name__),
    }


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
