"""Results of runs that never took place, but could have: reproducible numbers of any size."""

from __future__ import annotations

import numpy as np

from lightning_taylor_prune.report.results import GroupResult, Latency, NetworkResult, Progress, Results

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def resnet20_layers() -> dict[str, int]:
    """Filters of each convolution of a ResNet-20 by name."""
    layers = {"conv1": 16}
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(3):
            layers |= {f"layer{stage}.{block}.conv1": width, f"layer{stage}.{block}.conv2": width}
            if block == 0 and stage > 1:
                layers[f"layer{stage}.0.shortcut.0"] = width
    return layers


def deep_layers(count: int) -> dict[str, int]:
    """Filters of each of many convolutions, growing from 64 to 2048."""
    return {f"features.stage{i // 40}.block{i // 3}.conv{i % 3 + 1}": 64 * 2 ** (i * 5 // count) for i in range(count)}


def confusion(random: np.random.Generator, classes: int, examples: int, skill: float) -> np.ndarray:
    """Counts in which neighbouring classes are mistaken for each other most."""
    distance = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
    wrong = np.exp(-distance / 2) * random.uniform(0.1, 1, (classes, classes))
    np.fill_diagonal(wrong, 0)
    right = np.clip(skill + random.normal(0, 0.05, classes), 0.02, 0.99)
    shares = wrong / np.maximum(wrong.sum(1, keepdims=True), 1e-9) * (1 - right)[:, None]
    np.fill_diagonal(shares, right)
    return np.array([random.multinomial(examples, row / row.sum()) for row in shares])


def history(layers: dict[str, int], after: dict[str, int], prunes: int) -> list[dict]:
    """Rows such as the callback's, for a given outcome."""
    lost = {name: 1 - after[name] / count for name, count in layers.items()}
    total = sum(layers.values())
    removed = (total - sum(after.values())) / prunes
    return [
        {
            "step": 50 * (i + 1),
            "count": i + 1,
            "removed": round(removed),
            "filters": total - round(removed * (i + 1)),
            "num_prunable_filters": total - round(removed * (i + 1)),
            "params": 271_690 - 5000 * (i + 1),
            "macs": 41_000_000 - 683_000 * (i + 1),
            "score_threshold": 1e-6 * (i + 1),
            "skipped_minibatches": 0,
            "scores": {
                name: {
                    "removed": 1,
                    "removed_score": 1e-6,
                    "kept_score": 1e-5,
                    "rank": float(np.clip(0.95 - (1.3 - 0.8 * i / prunes) * share, 0.02, 0.98)),
                }
                for name, share in lost.items()
            },
            "metrics": {"val_acc": 0.9 - 0.002 * i},
        }
        for i in range(prunes)
    ]


def example(
    class_names: tuple[str, ...] = CIFAR10,
    layers: dict[str, int] | None = None,
    prunes: int = 30,
    examples: int = 1000,
    title: str = "ResNet-20 on CIFAR-10, pruned by Taylor scores",
) -> Results:
    """Results of a whole run."""
    random = np.random.default_rng(0)
    layers = layers or resnet20_layers()
    depth = np.linspace(0, 1, len(layers))
    share = np.clip(random.uniform(0, 0.45, len(layers)) + 0.35 * depth, 0, 0.9)
    after = {name: count - int(s * count) for (name, count), s in zip(layers.items(), share, strict=True)}
    before_counts = confusion(random, len(class_names), examples, 0.90)
    after_counts = confusion(random, len(class_names), examples, 0.86)
    steps = np.arange(1, 50 * prunes + 1)
    total = sum(layers.values())
    return Results(
        title=title,
        command="python recipes/prune.py experiment=cifar10_resnet20 data=imagefolder data.root=data/cifar10 seed=1",
        class_names=class_names,
        original=NetworkResult(
            params=271_690,
            macs=41_000_000,
            filters=total,
            accuracy=float(np.trace(before_counts) / before_counts.sum()),
            filters_per_layer=layers,
            confusion=before_counts,
            latency=Latency(8.42, 8.31, 8.97, 50, 256, "CPU, 2 threads"),
        ),
        pruned=NetworkResult(
            params=121_282,
            macs=20_500_000,
            filters=sum(after.values()),
            accuracy=float(np.trace(after_counts) / after_counts.sum()),
            filters_per_layer=after,
            confusion=after_counts,
            latency=Latency(5.77, 5.61, 6.2, 50, 256, "CPU, 2 threads"),
        ),
        progress=Progress(
            loss_iterations=tuple(steps.tolist()),
            losses=tuple(np.abs(random.normal(0.25, 0.07, len(steps)) + 0.1 * (steps % 50 < 12)).tolist()),
            iterations=tuple(range(0, 50 * prunes + 1, 50)),
            accuracies=tuple((0.9 - np.cumsum(np.abs(random.normal(0.001, 0.002, prunes + 1)))).tolist()),
            num_prunable_filters=tuple(np.linspace(total, sum(after.values()), prunes + 1).astype(int).tolist()),
        ),
        history=tuple(history(layers, after, prunes)),
        groups=tuple(GroupResult(name, (name,), count, after[name]) for name, count in layers.items()),
        notes=("A tenth of the training images guided every decision; the test images were read once, at the end.",),
        environment={"Python": "3.11.9", "torch": "2.11.0", "lightning": "2.6.1", "Seed": "1"},
    )
