"""How well a latency table predicts real networks, and how much of a gain in MACs becomes a gain in time.

Run ``python recipes/benchmarks/latency.py`` on a machine that does nothing else. Every network is measured
in a process of its own and written down as soon as it is done: a run that was ended goes on where it was, with
``--out`` the same. ``--fresh`` begins anew.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python then looks for modules in recipes/, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from lightning_taylor_prune import ChannelGroups, LatencyTable, PruningPlan, find_groups, prune_, select
from lightning_taylor_prune.criteria.criterion import CRITERIA
from lightning_taylor_prune.latency.cache import device_name

NETWORKS = ("resnet18", "resnet50", "mobilenet_v3_large", "vit_b_16")
RATIOS = (0.0, 0.3, 0.5)
BATCH, SIZE = 8, 224

ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32)}
"""The process keeps the memory that it has got: else glibc gives it back and gets it again, or not, by chance."""

Record = dict[str, Any]


def build(name: str) -> tuple[nn.Module, Tensor, bool]:
    """Return a network with random weights, images for it, and whether it runs channels last."""
    torch.manual_seed(0)
    channels_last = not name.startswith("vit")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = getattr(torchvision.models, name)().eval().to(memory_format=layout)
    return model, torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=layout), channels_last


def milliseconds(model: nn.Module, images: Tensor) -> float:
    """Return the median time of a forward pass, the least of three rounds."""
    timer = Timer("model(images)", globals={"model": model, "images": images}, num_threads=torch.get_num_threads())
    with torch.inference_mode():
        return 1e3 * min(timer.blocked_autorange(min_run_time=2).median for _ in range(3))


def table_of(groups: ChannelGroups, channels_last: bool, folder: Path, seconds: float) -> LatencyTable:
    """Measure, or go on with, the table of a network."""
    return LatencyTable.measure(
        groups, channels_last=channels_last or None, max_seconds=seconds, cache_dir=folder, progress=sys.stderr.isatty()
    )


def random_plan(groups: ChannelGroups, ratio: float) -> PruningPlan:
    """Return a plan that removes a part of every group, units by chance."""
    generator = torch.Generator().manual_seed(0)
    chosen = {g.name: torch.randperm(g.num_channels, generator=generator) for g in groups}
    return groups.plan({g.name: chosen[g.name][: int(ratio * g.num_channels)].tolist() for g in groups})


def predictions(name: str, folder: Path, seconds: float) -> list[Record]:
    """Compare predicted and measured times of one network at several sizes."""
    model, images, channels_last = build(name)
    groups = find_groups(model, images)
    table = table_of(groups, channels_last, folder, seconds)
    found = []
    for ratio in RATIOS:
        plan = random_plan(groups, ratio)
        after, pruned = groups.after(plan), copy.deepcopy(model)
        if ratio:
            prune_(pruned, find_groups(pruned, images).plan(plan.removed))
        record = {"network": name, "removed": ratio, "macs": after.macs / groups.macs}
        found.append(record | {"predicted": table.latency(after), "measured": milliseconds(pruned.eval(), images)})
    return found


def bar(folder: Path, seconds: float) -> list[Record]:
    """Prune ResNet-50 to half its MACs, chosen in several ways, and compare what is gained in MACs and in time."""
    name = "resnet50"
    model, images, channels_last = build(name)
    groups = find_groups(model, images)
    table = table_of(groups, channels_last, folder, seconds)
    before = milliseconds(model, images)
    scores = relative_magnitude(model, groups)
    found = []
    for how, choose in WAYS.items():
        plan = choose(groups, scores, table)
        after, pruned = groups.after(plan), copy.deepcopy(model)
        prune_(pruned, find_groups(pruned, images).plan(plan.removed))
        record = {"how": how, "macs": after.macs / groups.macs, "before": before, "predicted": table.latency(after)}
        found.append(record | {"measured": milliseconds(pruned.eval(), images)})
    return found


def relative_magnitude(model: nn.Module, groups: ChannelGroups) -> Tensor:
    """Return the norm of the weights that write each unit, by the mean of its group; shape ``[num_units]``."""
    norms = CRITERIA["magnitude"](model, groups).compute()
    return torch.cat([own / own.mean() for own in norms.split([g.num_channels for g in groups])])


def by_score(groups: ChannelGroups, scores: Tensor, table: LatencyTable, round_to: int = 1) -> PruningPlan:
    """Remove the units of lowest score until half of the MACs are left."""
    return select(groups, scores, groups.num_units, stop_at={"macs": 0.5}, round_to=round_to, max_pruning_ratio=0.9)


def by_score_rounded(groups: ChannelGroups, scores: Tensor, table: LatencyTable) -> PruningPlan:
    """Do the same, with multiples of channels that most units' groups want."""
    multiples = table.best_multiple(groups)
    votes = {m: sum(groups[name].num_channels for name, best in multiples.items() if best == m) for m in (1, 8, 16, 32)}
    return by_score(groups, scores, table, max(votes, key=lambda multiple: votes[multiple]))


def by_score_per_ms(groups: ChannelGroups, scores: Tensor, table: LatencyTable) -> PruningPlan:
    """Remove the units of lowest score per millisecond saved, rounded in the same way."""
    per_ms = scores / table.unit_latency(groups).clamp(min=1e-6)
    return by_score_rounded(groups, per_ms, table)


WAYS: dict[str, Callable[[ChannelGroups, Tensor, LatencyTable], PruningPlan]] = {
    "magnitude, any number of channels": by_score,
    "magnitude, multiples from the table": by_score_rounded,
    "magnitude per saved ms, multiples from the table": by_score_per_ms,
}


# --- the run --------------------------------------------------------------------------------------------------------


def in_a_process(what: str, args: argparse.Namespace) -> list[Record]:
    """Run one part in a fresh process; it has the settings of the allocator from its start."""
    command = [sys.executable, __file__, "--only", what, "--out", str(args.out), "--seconds", str(args.seconds)]
    threads = str(args.threads)
    env = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    done = subprocess.run([*command, "--threads", threads], env=env, stdout=subprocess.PIPE, text=True, check=True)
    found: list[Record] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_part(what: str, args: argparse.Namespace) -> list[Record]:
    """Run one part in this process."""
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    if what == "bar":
        return bar(args.out / "tables", args.seconds)
    return predictions(what, args.out / "tables", args.seconds)


def markdown(results: dict[str, list[Record]], args: argparse.Namespace) -> str:
    """Return the report."""
    device = device_name(torch.device("cpu"))
    versions = f"torch {torch.__version__}, torchvision {version('torchvision')}, Python {platform.python_version()}"
    lines = [
        "# Predicted and measured latency",
        "",
        f"{versions}; {device}, {args.threads} thread{'s' if args.threads > 1 else ''}; float32, batches of {BATCH}"
        f" images of {SIZE} x {SIZE} pixels, channels last but for vit_b_16; random weights. Tables were measured"
        f" for at most {args.seconds:g} s per network. The process keeps freed memory"
        f" ({' '.join(f'{k}={v}' for k, v in ALLOCATOR.items())}). The measured time is the least of three medians of"
        " two seconds (`torch.utils.benchmark.Timer`).",
        "",
        f"Command: `python recipes/benchmarks/latency.py --threads {args.threads} --seconds {args.seconds:g}`",
        "",
        "| Network | Removed of each group | MACs | Predicted, ms | Measured, ms | Error |",
        "|---|---|---|---|---|---|",
        *(prediction_row(r) for name in NETWORKS for r in results.get(name, [])),
    ]
    if "bar" in results:
        lines += [
            "",
            "## How much of the gain in MACs becomes a gain in time",
            "",
            "ResNet-50 at half its MACs. The share is (1 - time after / time before) / (1 - MACs after / MACs before).",
            "",
            "| Units are chosen by | MACs | Before, ms | Predicted, ms | Measured, ms | Share |",
            "|---|---|---|---|---|---|",
            *map(bar_row, results["bar"]),
        ]
    return "\n".join([*lines, ""])


def prediction_row(r: Record) -> str:
    error = r["predicted"] / r["measured"] - 1
    return (
        f"| {r['network']} | {r['removed']:.0%} | {r['macs']:.1%} | {r['predicted']:.1f} | {r['measured']:.1f}"
        f" | {error:+.1%} |"
    )


def bar_row(r: Record) -> str:
    share = (1 - r["measured"] / r["before"]) / (1 - r["macs"])
    return (
        f"| {r['how']} | {r['macs']:.1%} | {r['before']:.1f} | {r['predicted']:.1f} | {r['measured']:.1f}"
        f" | {share:.1%} |"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=Path("outputs/latency"), help="folder of tables and records")
    parser.add_argument("--report", type=Path, default=here / "latency.md", help="the report")
    parser.add_argument("--seconds", type=float, default=120, help="seconds for each network's table")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run has found")
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS, "bar"], choices=[*NETWORKS, "bar"])
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.only:
        print(json.dumps(run_part(args.only, args)))
        return
    if args.fresh:
        shutil.rmtree(args.out)
        args.out.mkdir(parents=True)
    path = args.out / "records.json"
    results: dict[str, list[Record]] = json.loads(path.read_text()) if path.exists() else {}
    for what in args.networks:
        if what not in results:
            start = time.monotonic()
            results[what] = in_a_process(what, args)
            path.with_suffix(".tmp").write_text(json.dumps(results))
            path.with_suffix(".tmp").replace(path)
            print(f"{what}: {time.monotonic() - start:.0f} s", file=sys.stderr)
        args.report.write_text(markdown(results, args))
    print(args.report.read_text())


if __name__ == "__main__":
    main()
