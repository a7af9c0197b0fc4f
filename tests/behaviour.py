"""Compare what two revisions of the package do to fixed networks from fixed seeds: ``make same REVISION=HEAD~1``.

A change of structure must leave every line equal: the same groups, plans and pruned weights, and the same training,
uninterrupted and resumed. Only public names are used, so that revisions with other modules inside can be compared.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGE = "lightning_taylor_prune"
CRITERIA = ("taylor", "taylor_examples", "taylor_gate", "taylor_weight", "taylor_activation", "magnitude", "random")


def digest(value: Any) -> str:
    """Return a hash of nested containers of tensors, arrays and plain values, bit for bit."""
    state = hashlib.sha256()
    _feed(state, value)
    return state.hexdigest()[:16]


def _feed(state: Any, value: Any) -> None:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        _feed(state, (str(value.dtype), list(value.shape)))
        state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        _feed(state, (str(value.dtype), list(value.shape)))
        state.update(value.tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):  # a dictionary that was filled in another order is the same
            _feed(state, (str(key), value[key]))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _feed(state, item)
    else:
        state.update(f"{value!r}\0".encode())


# --- one network, pruned by hand ------------------------------------------------------------------------------------


def pruned_networks() -> Iterator[tuple[str, Any]]:
    """Yield, for every tiny network, its groups, a plan from seeded scores, and the pruned weights and output."""
    import networks

    for name, network in networks.NETWORKS.items():
        for rewrite in (False, True):
            yield f"{name}{', rewritten' if rewrite else ''}", _outcome(network, rewrite)


def _outcome(network: Any, rewrite: bool) -> Any:
    import torch

    from lightning_taylor_prune import PruningError, find_groups, prune_, select

    model, example = network.build(), network.example()
    try:
        groups = find_groups(model, example, rewrite_hard_coded=rewrite)
    except PruningError as error:
        return type(error).__name__
    found = [(g.name, g.num_channels, g.exact, digest([vars(s) for s in g.slices])) for g in groups]
    locked: dict[str, int] = {}
    for entry in groups.locked:
        locked[entry.name] = locked.get(entry.name, 0) + entry.num_channels
    scores = torch.rand(groups.num_units, generator=torch.Generator().manual_seed(0))
    plan = select(groups, scores, pruning_ratio=0.3)
    after = prune_(model, plan)
    model.eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        output = _tensors(model(*example))
    return {
        "groups": digest(found),
        "locked": digest(locked),
        "plan": plan.digest(),
        "costs": [groups.params, groups.macs, groups.num_filters, after.params, after.macs, after.num_filters],
        "weights": digest(model.state_dict()),
        "attributes": digest(_sizes(model)),
        "output": digest(output),
    }


def _tensors(value: Any) -> list[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in values for tensor in _tensors(item)]


def _sizes(model: Any) -> list[tuple[str, str, int]]:
    modules = model.named_modules()
    return [(name, key, v) for name, m in modules for key, v in sorted(vars(m).items()) if type(v) is int]


# --- a training, uninterrupted and resumed ------------------------------------------------------------------------


def trainings() -> Iterator[tuple[str, Any]]:
    """Yield, for every criterion, what a training with several prunes leads to, and again if it is resumed."""
    for criterion in CRITERIA:
        for state in ("reset", "slice") if criterion == "taylor" else ("reset",):
            yield f"training, {criterion}, {state}", _training(criterion=criterion, optimizer_state=state)
    yield "training to a target", _training(stop_at={"params": 0.6}, round_to=2, max_pruning_ratio=0.8, max_prunes=None)
    yield "training with accumulation", _training(accumulate_grad_batches=2, every_n_steps=2, normalize="mean")


def _training(accumulate_grad_batches: int = 1, **arguments: Any) -> Any:
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning_modules import Classifier, loader, trainer

    from lightning_taylor_prune import TaylorPruningCallback

    def fit(folder: str, resume: str | None) -> Any:
        model = Classifier()
        options = {"every_n_steps": 3, "filters_per_prune": 3, "max_prunes": 4, **arguments}
        pruning = TaylorPruningCallback(**options)
        saving = ModelCheckpoint(folder, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
        fitting = trainer(
            pruning,
            more_callbacks=[saving],
            max_epochs=3,
            enable_checkpointing=True,
            accumulate_grad_batches=accumulate_grad_batches,
        )
        fitting.fit(model, loader(), loader(seed=1), ckpt_path=resume)
        history = [{k: v for k, v in row.items() if k != "scores"} for row in pruning.history]
        return {
            "history": digest(history),
            "scores": digest([row["scores"] for row in pruning.history]),
            "removed": [row["removed"] for row in pruning.history],
            "weights": digest(model.state_dict()),
            "optimizer": digest([o.state_dict() for o in fitting.optimizers]),
            "layers": [pruning.filters_before, pruning.filters_after],
        }

    with tempfile.TemporaryDirectory() as folder:
        whole = fit(f"{folder}/whole", None)
        resumed = [fit(f"{folder}/{i}", f"{folder}/whole/epoch={i}.ckpt") for i in (0, 1)]
    return {"whole": whole, "resumed equals uninterrupted": [r == whole for r in resumed]}


# --- the comparison -----------------------------------------------------------------------------------------------


def record(package: Path) -> dict[str, Any]:
    """Return what the package in a folder does."""
    sys.path[:0] = [str(package), str(HERE)]
    import torch

    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    import lightning_taylor_prune

    assert Path(lightning_taylor_prune.__file__).is_relative_to(package.resolve())
    return dict([*pruned_networks(), *trainings()])


def record_revision(revision: str) -> dict[str, Any]:
    """Return what the package did at a revision."""
    command = ["git", "archive", revision, PACKAGE]
    archive = subprocess.run(command, cwd=HERE.parent, check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
        return record_in_process(Path(folder))


def record_in_process(package: Path) -> dict[str, Any]:
    """Return what :func:`record` does in a process of its own."""
    command = [sys.executable, __file__, "--record", str(package)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for everything that is not the same; what only one of the two knows is passed over."""
    return [f"{name}: {before[name]} -> {now[name]}" for name in before if name in now and before[name] != now[name]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", nargs="?", default="HEAD", help="the revision to compare the working tree with")
    parser.add_argument("--record", type=Path, help="only print what the package in this folder does, as JSON")
    parsed = parser.parse_args(arguments)
    if parsed.record is not None:
        print(json.dumps(record(parsed.record)))
        return
    before, now = record_revision(parsed.revision), record_in_process(HERE.parent)
    found = differences(before, now)
    print("\n".join([*found, f"{len(before.keys() & now.keys())} outcomes compared, {len(found)} differ."]))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
