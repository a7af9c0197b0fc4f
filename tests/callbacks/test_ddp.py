"""The callback in several processes: all ranks equal, and equal to one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.utils.data import DataLoader, DistributedSampler

from lightning_taylor_prune import TaylorPruningCallback, find_groups, make_loadable
from lightning_taylor_prune.callbacks.strategies import Rewrap
from lightning_taylor_prune.pruning.prune import cut_tensors_
from tests.distributed import run_ranks
from tests.lightning_modules import Classifier, loader, small_network, smooth_network, trainer

OPTIONS: dict[str, Any] = {
    "plain": {},
    "static_graph": {"static_graph": True},
    "find_unused_parameters": {"find_unused_parameters": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "communication hook": {"ddp_comm_hook": default_hooks.bf16_compress_hook},
}


def train(
    options: str = "plain",
    prunes: int = 10,
    batch_size: int = 8,
    nodes: int = 1,
    smooth: bool = False,
    powersgd: bool = False,
    die: int | None = None,
    within: str = "_prune",
    criterion: str = "taylor",
    frozen: bool = False,
    strategy: type[DDPStrategy] = DDPStrategy,
    **kwargs: Any,
) -> dict[str, Any]:
    """Train with the callback in this rank of a job (or alone); returns what must be equal everywhere."""
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    arguments = dict(OPTIONS[options])
    if powersgd:
        state = powerSGD_hook.PowerSGDState(process_group=None, matrix_approximation_rank=2, start_powerSGD_iter=2)
        arguments |= {"ddp_comm_hook": powerSGD_hook.powerSGD_hook, "ddp_comm_state": state}
    distributed = strategy(process_group_backend="gloo", **arguments) if ranks > 1 else "auto"
    module = Classifier(
        smooth_network().double() if smooth else small_network(width=12),
        optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-2),
    )
    if frozen:
        module.network[2].requires_grad_(False)
    settings: dict[str, Any] = {"every_n_steps": 2, "filters_per_prune": 2, "max_prunes": prunes}
    callback = Dying(die, within, optimizer_state="slice", rank_timeout=5, criterion=criterion, **settings)
    run = trainer(
        callback, strategy=distributed, devices=max(ranks // nodes, 1), num_nodes=nodes, max_epochs=20, **kwargs
    )
    data = loader(64, 8).dataset
    # In order, so that the ranks' batches together are the batch of a single process.
    sampler = DistributedSampler(data, ranks, int(os.environ.get("RANK", 0)), shuffle=False)
    run.fit(module, DataLoader(data, batch_size // ranks, sampler=sampler))
    optimizer = run.optimizers[0]
    state = [value for p in module.parameters() for value in optimizer.state[p].values()]
    return {
        "history": callback.history,
        "parameters": [p.detach().clone() for p in module.parameters()],
        "state": state,
        "shapes": [tuple(p.shape) for p in module.parameters()],
    }


class Dying(TaylorPruningCallback):
    """Ends its process in the second prune, on one rank, as the prune begins or within the cut."""

    def __init__(self, rank: int | None, within: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rank, self.within = rank, within

    def _prune(self, trainer: Any, pl_module: Any) -> None:
        if self.rank == trainer.global_rank and self.history:
            if self.within == "_prune":
                os._exit(1)
            Rewrap.commit = lambda step: os._exit(1)  # type: ignore[assignment]
        super()._prune(trainer, pl_module)


class OwnDDP(DDPStrategy):
    """A user's subclass."""


def same(results: list[dict[str, Any]]) -> bool:
    """Whether parameters and optimizer state are bit-identical on all ranks."""
    first, *others = results
    return all(
        torch.equal(a, b)
        for other in others
        for key in ("parameters", "state")
        for a, b in zip(first[key], other[key], strict=True)
    )


SCENARIOS: dict[str, dict[str, Any]] = {
    **{name: {"options": name} for name in OPTIONS},
    "PowerSGD": {"powersgd": True},
    "accumulation": {"prunes": 4, "accumulate_grad_batches": 3},
    "same choice": {"smooth": True, "prunes": 4},
    "same choice by examples": {"smooth": True, "prunes": 4, "criterion": "taylor_examples"},
    "same choice behind frozen layers": {"smooth": True, "prunes": 4, "frozen": True},
    "subclass of the strategy": {"strategy": OwnDDP},
}


def train_all() -> dict[str, Any]:
    """All scenarios one after another: starting processes takes longer than training in them."""
    nodes = int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
    return {name: train(nodes=nodes, **arguments) for name, arguments in SCENARIOS.items()}


@pytest.fixture(scope="module", params=[(2, 1), (4, 2)], ids=["2 ranks", "4 ranks on 2 nodes"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank says of every scenario."""
    count, nodes = request.param
    results = run_ranks(train_all, tmp_path_factory.mktemp("ranks"), count, nodes, timeout=300)
    assert all(isinstance(result, dict) for result in results), results
    return results


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ranks_stay_bit_identical(scenario: str, ranks: list[dict[str, Any]]) -> None:
    results = [result[scenario] for result in ranks]
    assert len(results[0]["history"]) == SCENARIOS[scenario].get("prunes", 10) and same(results)


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name.startswith("same choice")])
def test_number_of_ranks_does_not_change_the_choice(scenario: str, ranks: list[dict[str, Any]]) -> None:
    assert ranks[0][scenario]["shapes"] == train(**SCENARIOS[scenario])["shapes"]


def resumed_within_an_interval(where: str) -> dict[str, Any]:
    """Train for 2 epochs of 8 steps with a prune every 6 steps: at once, and with a checkpoint between the epochs."""

    def run(epochs: int, resume: str | None, save: str | None = None) -> dict[str, Any]:
        module = Classifier(smooth_network().double())
        callback = TaylorPruningCallback(every_n_steps=6, filters_per_prune=2, criterion="taylor_examples")
        strategy = DDPStrategy(process_group_backend="gloo")
        fitting = trainer(callback, strategy=strategy, devices=2, max_epochs=epochs)
        fitting.fit(module, loader(64, 4), ckpt_path=resume)
        if save is not None:
            fitting.save_checkpoint(save)
        return {"history": callback.history, "parameters": [p.detach() for p in module.parameters()], "state": []}

    path = f"{where}/within.ckpt"
    whole = run(2, None)
    run(1, None, path)
    return {"whole": whole, "resumed": run(2, path)}


def test_a_checkpoint_within_an_interval_keeps_what_every_rank_saw(tmp_path: Path) -> None:
    for result in run_ranks(resumed_within_an_interval, tmp_path, 2, timeout=120, where=str(tmp_path)):
        whole, resumed = result["whole"], result["resumed"]
        thresholds = [[row["score_threshold"] for row in run["history"]] for run in (whole, resumed)]
        assert same([whole, resumed]) and thresholds[0] == pytest.approx(thresholds[1], rel=1e-12)


def spawn(loadable: bool) -> Any:
    """Train in child processes and return the number of parameters that came back, or the error."""
    module = Classifier(small_network(width=12))
    before = sum(p.numel() for p in module.parameters())
    if loadable:
        make_loadable(module)
    run = trainer(TaylorPruningCallback(every_n_steps=2, filters_per_prune=3), strategy="ddp_spawn", devices=2)
    run.fit(module, loader())
    return sum(p.numel() for p in module.parameters()) < before


def test_child_processes_hand_the_pruned_network_back() -> None:
    assert spawn(loadable=True)


def test_child_processes_without_a_loadable_module_are_refused() -> None:
    with pytest.raises(Exception, match="make_loadable"):
        spawn(loadable=False)


@pytest.mark.parametrize("within", ["_prune", "wrapper"])
@pytest.mark.parametrize(("count", "die"), [(2, 0), (3, 2)], ids=["first", "last"])
def test_a_rank_that_dies_in_a_prune_does_not_hang_the_others(
    count: int, die: int, within: str, tmp_path: Path
) -> None:
    results = run_ranks(train, tmp_path, count, timeout=60, die=die, within=within, batch_size=24)
    assert all(f"waited 5 s for ranks [{die}]" in results[rank] for rank in range(count) if rank != die)


def no_group(self: Any) -> None:
    raise RuntimeError("process group has gone")


def test_a_cut_that_fails_at_the_wrapper_is_taken_back() -> None:
    broken = {"model": "the old wrapper", "_pl_static_graph_delay_done": True, "configure_ddp": no_group}
    model, strategy = small_network(), type("DDPStrategy", (), broken)()
    before = [id(p) for p in model.parameters()]
    plan = find_groups(model, torch.zeros(1, 1, 8, 8)).plan({"0": [1, 2]})
    with pytest.raises(RuntimeError, match="has gone"):
        cut_tensors_(model, plan, further_steps=[Rewrap(strategy, model)])
    assert (strategy.model, before) == ("the old wrapper", [id(p) for p in model.parameters()])
