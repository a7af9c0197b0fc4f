"""What pruning costs, as ratios.

Run ``python recipes/benchmarks/benchmark.py [--quick] [--device cuda] [--save benchmark.md]``.

Every figure is a median; the two sides of a ratio are measured within the same step, so that a machine whose speed
drifts slows both. Absolute times hold for the machine named in the first line only.
"""

from __future__ import annotations

import argparse
import copy
import gc
import platform
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_taylor_prune import find_groups, prune_, select
from lightning_taylor_prune.criteria.criterion import CRITERIA
from recipes.models import ResNet

try:
    import torch_pruning
except ImportError:
    torch_pruning = None

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: ResNet(3, 10),
    "resnet18": torchvision.models.resnet18,
    "resnet50": torchvision.models.resnet50,
    "densenet201": torchvision.models.densenet201,
}
SIZES = {"resnet20": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="smaller images and fewer repeats")
    parser.add_argument("--save", type=Path, help="write the tables to this Markdown file too")
    options = parser.parse_args()
    lines = [f"{machine(options.device)}\n"]
    for title, table in tables(options.device, options.quick):
        lines += [f"## {title}\n", *markdown(table), ""]
        print("\n".join(lines[-len(table) - 4 :]), flush=True)
    if options.save:
        options.save.write_text("# Benchmark\n\n`python recipes/benchmarks/benchmark.py`, " + "\n".join(lines))


def tables(device: str, quick: bool) -> Iterable[tuple[str, list[list[str]]]]:
    """Yield titles with rows, the header first."""
    large = 64 if quick else 224
    repeats = 3 if quick else 7
    yield (
        "Training step with scores over without",
        [
            ["network", "batch", "image", "ratio", "extra memory of one update / gradients"],
            step_row("resnet20", 256, 32, 3 * repeats, device),
            step_row("resnet50", 32, large, repeats, device),
        ],
    )
    yield (
        "One prune event after the first trace: choose, cut, verify (8 units)",
        [
            ["network", "median ms", "limit ms"],
            *(
                event_row(name, limit, repeats, device)
                for name, limit in (("resnet20", 50), ("resnet50", 500), ("densenet201", 1000))
            ),
        ],
    )
    names = ["resnet18", "resnet50", "densenet201"]
    yield (
        "Analysis and cut beside torch-pruning (half of all channels, uniform; seconds)",
        [
            [
                "network",
                "ours: find_groups",
                "ours: select + prune_",
                "torch-pruning: build",
                "torch-pruning: cut",
                "ratio of sums",
            ],
            *(peer_row(name, device) for name in names),
        ],
    )


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.processor() or platform.machine()}"
    return f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads, Python {platform.python_version()}"


# --- step time ------------------------------------------------------------------------------------------------------


def step_row(name: str, batch: int, size: int, repeats: int, device: str) -> list[str]:
    """Time what scores take in training steps of one network."""
    model = NETWORKS[name]().to(device)
    x, y = torch.randn(batch, 3, size, size, device=device), torch.randint(10, (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    scores = CRITERIA["taylor"](model, find_groups(model, x))

    def step() -> float:
        """Return what scoring takes beside the rest of the same step."""
        start = now(device)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(x), y))
        backward = now(device)
        scores.update()
        scored = now(device)
        optimizer.step()
        return (scored - backward) / (now(device) - start - (scored - backward))

    step()
    ratio = 1 + statistics.median(step() for _ in range(repeats))
    with PeakMemory() as peak:
        scores.update()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    return [name, str(batch), str(size), f"{ratio:.3f}", f"{peak.most / gradients:.2f}"]


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of tensors made inside that are alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive, self.most, self._seen = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.alive += tensor.nbytes
                weakref.finalize(tensor, self._release, tensor.nbytes)
        self.most = max(self.most, self.alive)
        return result

    def _release(self, nbytes: int) -> None:
        self.alive -= nbytes


# --- one prune event ------------------------------------------------------------------------------------------------


def event_row(name: str, limit: int, repeats: int, device: str) -> list[str]:
    """Time prune events one after another on one network with an optimizer."""
    size = SIZES.get(name, 224)
    model, x = NETWORKS[name]().to(device), torch.randn(2, 3, size, size, device=device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    groups = find_groups(model, x)
    times = []
    for seed in range(repeats):
        scores = torch.rand(groups.num_units, generator=torch.Generator().manual_seed(seed))
        start = now(device)
        plan = select(groups, scores, 8, min_channels=2, stop_at={"params": 0.1})
        cut = prune_(model, plan, optimizer)
        times.append(now(device) - start)
        assert cut is not None
        groups = cut
    return [name, f"{1e3 * statistics.median(times):.0f}", str(limit)]


# --- the strongest peer ---------------------------------------------------------------------------------------------


def peer_row(name: str, device: str) -> list[str]:
    """Analyse and cut one network with this package and with torch-pruning."""
    model, x = NETWORKS[name]().to(device), torch.randn(2, 3, 224, 224, device=device)
    find_groups(model, x)  # torch imports parts of itself on first use
    start = now(device)
    groups = find_groups(model, x)
    found = now(device) - start
    other = copy.deepcopy(model)
    start = now(device)
    half = {g.name: range(g.num_channels // 2) for g in groups}
    prune_(model, groups.plan(half))
    cut = now(device) - start
    del model
    gc.collect()
    if torch_pruning is None:
        return [name, f"{found:.2f}", f"{cut:.2f}", "not installed", "", ""]
    theirs = time_peer(other, x, device)
    return [name, f"{found:.2f}", f"{cut:.2f}", *(f"{t:.2f}" for t in theirs), f"{(found + cut) / sum(theirs):.2f}"]


def time_peer(model: nn.Module, x: Tensor, device: str) -> tuple[float, float]:
    """Time torch-pruning's pruner: its constructor, and one step at a ratio of one half."""
    start = now(device)
    pruner = torch_pruning.pruner.BasePruner(
        model,
        x,
        importance=torch_pruning.importance.MagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000],
    )
    built = now(device) - start
    start = now(device)
    pruner.step()
    return built, now(device) - start


def markdown(table: list[list[str]]) -> list[str]:
    header, *rows = table
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


if __name__ == "__main__":
    main()
