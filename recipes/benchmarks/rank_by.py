"""What units should be compared by, for which target: measured on scikit-learn's digits, on one thread.

Run ``OMP_NUM_THREADS=1 python recipes/benchmarks/rank_by.py``: a small ResNet and a small vision transformer are
trained, pruned to the same target by each ``rank_by``, with the same optimizer steps in between and afterwards. A run
that was broken off goes on where it was: what is measured lies in ``--results`` (``outputs/rank_by.jsonl``). At the
end, or with ``--table`` at once, the table is written to ``recipes/benchmarks/rank_by.md``.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # run as a script: Python then looks for modules in recipes/, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune import Pruner
from lightning_taylor_prune.pruning.costs import COSTS

WAYS = ("score", "score_per_param", "score_per_mac", "isomorphic")
TARGETS = ("params", "macs")
KEPT = (0.15,)
"""Fractions of the cost that are kept."""

SEEDS = (0, 1, 2)
EPOCHS, PRUNES, STEPS_BETWEEN, STEPS_AFTER, BATCH = 40, 12, 6, 50, 64
TABLE = Path(__file__).with_suffix(".md")


class Run(NamedTuple):
    """One pruned network."""

    network: str
    seed: int
    target: str
    kept: float
    rank_by: str


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.skip = nn.Conv2d(width_in, width, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.body(x))


def resnet() -> nn.Module:
    """Return a ResNet with two stages of two blocks."""
    stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = [Block(16, 16, 1), Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1)]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


class ViT(nn.Module):
    """A vision transformer on patches of 2 x 2 with three blocks of four heads."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.places = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
                for _ in range(3)
            )
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"ResNet": resnet, "ViT": ViT}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images and classes to train on, and others to test on."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order, None] / 16
    classes = torch.tensor(data.target)[order]
    return images[:1000], classes[:1000], images[1000:], classes[1000:]


def batches(images: Tensor, classes: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield minibatches without end, the images shifted by up to a pixel."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(images), generator=generator).split(BATCH)[:-1]:
            shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
            yield torch.roll(images[chosen], shift, (2, 3)), classes[chosen]


def train(model: nn.Module, data: Iterator[tuple[Tensor, Tensor]], steps: int, optimizer: Any, update: Any) -> None:
    for images, classes in itertools.islice(data, steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), classes).backward()
        update()
        optimizer.step()


def accuracy(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Return the accuracy in per cent."""
    with torch.no_grad():
        found = model.eval()(images).argmax(1)
    model.train()
    return 100 * float((found == classes).float().mean())


def trained(network: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model, (images, classes, *_) = NETWORKS[network](), digits()
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    train(model, batches(images, classes, seed), steps, optimizer, lambda: None)
    return model


def measure(run: Run, model: nn.Module) -> dict[str, Any]:
    """Prune a trained network and return what it costs then, and how good it is."""
    images, classes, test_images, test_classes = digits()
    before = accuracy(model, test_images, test_classes)
    data, optimizer = batches(images, classes, 100 + run.seed), torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = Pruner(
        model, images[:BATCH], optimizers=[optimizer], stop_at={run.target: run.kept}, max_prunes=PRUNES,
        rank_by=run.rank_by, max_pruning_ratio=0.95,
    )  # fmt: skip
    for _ in range(PRUNES):
        train(model, data, STEPS_BETWEEN, optimizer, pruner.update)
        pruner.prune()
    pruner.close()
    train(model, data, STEPS_AFTER, optimizer, lambda: None)
    whole = pruner.groups.unpruned()
    costs = {name: COSTS[name](pruner.groups) / COSTS[name](whole) for name in TARGETS}
    return {**run._asdict(), **costs, "before": before, "after": accuracy(model, test_images, test_classes)}


def known(results: Path) -> dict[Run, dict[str, Any]]:
    """Return what was measured before; a last line that was broken off does not count."""
    if not results.is_file():
        return {}
    rows = [json.loads(line) for line in results.read_text().splitlines() if line.endswith("}")]
    return {Run(*(row[name] for name in Run._fields)): row for row in rows}


def run_all(results: Path, seeds: Sequence[int]) -> None:
    done = known(results)
    results.parent.mkdir(parents=True, exist_ok=True)
    for network, seed in itertools.product(NETWORKS, seeds):
        runs = [Run(network, seed, *rest) for rest in itertools.product(TARGETS, KEPT, WAYS)]
        if not (to_do := [run for run in runs if run not in done]):
            continue
        model = trained(network, seed)
        for run in to_do:
            row = measure(run, copy.deepcopy(model))
            with results.open("a") as file:
                file.write("\n" * bool(file.tell()) + json.dumps(row))
            print(row, flush=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the means over seeds, with the standard error, as Markdown."""
    lines = [
        "# What units are compared by\n",
        f"Accuracy in per cent on 797 of scikit-learn's digits after pruning to the same cost ({PRUNES} prunes,",
        f"{STEPS_BETWEEN} optimizer steps before each and {STEPS_AFTER} afterwards, no tuning): mean over seeds and",
        "its standard error. `OMP_NUM_THREADS=1 python recipes/benchmarks/rank_by.py`\n",
        f"torch {version('torch')}, Python {sys.version.split()[0]}\n",
        "| Network | Target | `rank_by` | Accuracy | Seeds | Unpruned | Parameters kept | MACs kept |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network, kept, target, way in itertools.product(NETWORKS, KEPT, TARGETS, WAYS):
        wanted = (network, kept, target, way)
        own = [r for r in rows if (r["network"], r["kept"], r["target"], r["rank_by"]) == wanted]
        if own:
            lines.append(f"| {network} | {kept:.0%} of the {target} | `{way}` | {_row(own)} |")
    return "\n".join(lines) + "\n"


def _row(own: Sequence[dict[str, Any]]) -> str:
    after = [row["after"] for row in own]
    error = f" ± {statistics.stdev(after) / len(after) ** 0.5:.2f}" if len(after) > 1 else ""
    before, params, macs = (statistics.mean(row[name] for row in own) for name in ("before", "params", "macs"))
    return f"{statistics.mean(after):.2f}{error} | {len(own)} | {before:.2f} | {params:.1%} | {macs:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("outputs/rank_by.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--table", action="store_true", help="only write the table of what is measured so far")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if not args.table:
        run_all(args.results, args.seeds)
    TABLE.write_text(table(list(known(args.results).values())))


if __name__ == "__main__":
    main()
