"""Pruned checkpoints in code that knows nothing of pruning; files of other networks, damaged and edited files."""

from __future__ import annotations

import argparse
import copy
import io
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune import PlanError, find_groups, load_pruned, loading_pruned, prune_
from lightning_taylor_prune.pruning.checkpoint import KEY, attributes_of, set_attributes_of
from lightning_taylor_prune.pruning.loading import follow_checkpoint_shapes, make_loadable
from tests.lightning_modules import Classifier, loader, small_network, trainer
from tests.pruning.test_checkpoint import callback, equal

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")
TOKENS = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """Attention that takes its number of heads from an attribute: shapes do not tell it."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, 8
        self.qkv, self.out = nn.Linear(16, 3 * heads * 8), nn.Linear(heads * 8, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), -1, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(mixed)


class Reader(nn.Module):
    """A part of a larger module, with a classifier of some classes."""

    def __init__(self, classes: int = 3, heads: int = 4) -> None:
        super().__init__()
        torch.manual_seed(classes)
        self.encoder, self.head = Heads(heads), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def pruned_reader() -> Reader:
    model = Reader().eval()
    groups = find_groups(model, TOKENS)
    prune_(model, groups.plan({g.name: [1] for g in groups}))
    assert model.encoder.heads != 4 or model.encoder.width != 8
    return model


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def load_in_a_block(path: Path, network: nn.Module) -> None:
    with loading_pruned():
        network.load_state_dict(torch.load(path))


LOADERS: dict[str, Callable[[Path, nn.Module], Any]] = {
    "load_pruned": load_pruned,
    "loading_pruned": load_in_a_block,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Lightning checkpoint after a few prunes."""
    path = tmp_path_factory.mktemp("checkpoint") / "pruned.ckpt"
    run = trainer(callback(), max_epochs=1)
    run.fit(Classifier(), loader())
    run.save_checkpoint(path)
    return path


# --- libraries that build the network themselves --------------------------------------------------------------------


def test_a_class_of_others_loads_from_a_pruned_checkpoint(checkpoint: Path) -> None:
    with loading_pruned():
        module = Classifier.load_from_checkpoint(checkpoint)
    assert equal(module.state_dict(), torch.load(checkpoint)["state_dict"])


def test_a_trainer_without_the_callback_tests_a_pruned_checkpoint(checkpoint: Path) -> None:
    module = Classifier()
    module.test_step = module.validation_step
    with loading_pruned():
        trainer().test(module, loader(), ckpt_path=checkpoint)
    assert equal(module.state_dict(), torch.load(checkpoint)["state_dict"])


def as_it_is(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


def rebuilt(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(state)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}


@pytest.mark.parametrize(
    ("script", "part"),
    [(as_it_is, lambda m: m), (rebuilt, lambda m: m), (renamed, lambda m: m.encoder)],
    ids=["the state dict", "another dict", "a part under other names"],
)
@pytest.mark.parametrize("wrapped", [lambda s: s, lambda s: {"model": s, "epoch": 1}], ids=["bare", "in a dict"])
def test_integers_that_shapes_do_not_tell_follow(
    script: Callable[..., Any], part: Callable[..., Any], wrapped: Callable[..., Any], tmp_path: Path
) -> None:
    model, fresh = pruned_reader(), Reader()
    path = saved(wrapped(model.state_dict()), tmp_path / "model.pt")
    with loading_pruned():
        content = torch.load(path, weights_only=True)
        part(fresh).load_state_dict(script(content.get("model", content)))
    assert torch.equal(fresh.encoder(TOKENS), model.encoder(TOKENS))


def test_a_state_dict_read_before_the_block_brings_its_integers() -> None:
    model, fresh = pruned_reader(), Reader().eval()
    with loading_pruned():
        fresh.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(fresh(TOKENS), model(TOKENS))


def test_a_hook_of_the_users_that_renames_weights_runs_first() -> None:
    def old_names(module: nn.Module, state: dict[str, Any], *args: Any) -> None:
        for name in [*state]:
            state[name.removeprefix("net.")] = state.pop(name)

    network = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    network.register_load_state_dict_pre_hook(old_names)
    smaller = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 2)).state_dict()
    with loading_pruned():
        network.load_state_dict({f"net.{name}": value for name, value in smaller.items()})
    assert network[0].out_features == 3


def test_a_wrapped_network_loads() -> None:
    model, fresh = pruned_reader(), Reader().eval()
    with loading_pruned():
        nn.DataParallel(fresh).load_state_dict(nn.DataParallel(model).state_dict())
    assert torch.equal(fresh(TOKENS), model(TOKENS))


def test_parameters_without_a_shape_yet_load() -> None:
    network = nn.Sequential(nn.Linear(8, 6), nn.LazyLinear(3))
    smaller = nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 3)).state_dict()
    with loading_pruned():
        network.load_state_dict(smaller)
    assert equal(network.state_dict(), smaller)


@pytest.mark.parametrize("fails", [False, True], ids=["", "by an exception"])
def test_torch_is_itself_again_after_the_outermost_block(fails: bool) -> None:
    before = nn.Module.load_state_dict, torch.load
    try:
        with loading_pruned():
            with loading_pruned():
                pass
            assert nn.Module.load_state_dict is not before[0]
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert (nn.Module.load_state_dict, torch.load) == before


def test_threads_with_blocks_that_overlap_all_load() -> None:
    inside, loaded = threading.Barrier(4), []

    def load() -> None:
        network = nn.Linear(8, 4)
        with loading_pruned():
            inside.wait()
            network.load_state_dict(nn.Linear(8, 3).state_dict())
        loaded.append(network.out_features)

    before, threads = nn.Module.load_state_dict, [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == [3] * 4 and nn.Module.load_state_dict is before


# --- records in state dicts -----------------------------------------------------------------------------------------


def test_a_plain_state_dict_of_a_pruned_network_brings_its_integers(tmp_path: Path) -> None:
    model = pruned_reader()
    fresh = load_pruned(saved(model.state_dict(), tmp_path / "a.pt"), Reader()).eval()
    again = load_pruned(saved(fresh.state_dict(), tmp_path / "b.pt"), Reader()).eval()
    assert torch.equal(again(TOKENS), model(TOKENS))


def test_copies_of_a_pruned_network_bring_them_too() -> None:
    model, fresh = pruned_reader(), Reader().eval()
    make_loadable(fresh)
    fresh.load_state_dict(copy.deepcopy(model).state_dict())
    assert torch.equal(fresh(TOKENS), model(TOKENS))


def test_a_pickled_pruned_network_needs_no_package() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    groups = find_groups(model, torch.zeros(1, 8))
    prune_(model, groups.plan({"0": [1]}))
    pickled = pickle.dumps(model)
    assert b"lightning_taylor_prune" not in pickled and len(pickle.loads(pickled).state_dict()) == 4


def test_a_replaced_classifier_belongs_to_the_network_that_is_loaded() -> None:
    model, fresh = pruned_reader(), Reader(classes=7)
    model.head = nn.Linear(model.head.in_features, 7)
    with loading_pruned():
        fresh.load_state_dict(model.state_dict())
    assert equal(fresh.state_dict(), model.state_dict())


def test_weights_only_checkpoints_of_a_trainer_bring_integers(tmp_path: Path) -> None:
    class Reading(Classifier):
        def __init__(self) -> None:
            super().__init__(network=Reader(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x.flatten(1).view(len(x), 4, 16))

    run = trainer(callback(filters_per_prune=1), max_epochs=1)
    module = Reading()
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "small.ckpt", weights_only=True)
    fresh = load_pruned(tmp_path / "small.ckpt", Reading())
    assert attributes_of(fresh) == attributes_of(module)


def test_hyper_parameters_that_are_objects_load_if_the_file_is_trusted(tmp_path: Path) -> None:
    content = {"state_dict": nn.Linear(8, 3).state_dict(), "hyper_parameters": {"options": argparse.Namespace(a=1)}}
    path = saved(content, tmp_path / "a.ckpt")
    assert load_pruned(path, nn.Linear(8, 4), weights_only=False).out_features == 3
    with pytest.raises(PlanError, match=r"a\.ckpt to hold plain data only, .*`weights_only=False`"):
        load_pruned(path, nn.Linear(8, 4))


# --- files of other networks ----------------------------------------------------------------------------------------


def with_kernel(size: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, size), nn.ReLU(), nn.Conv2d(8, 4, 3))


def with_rows(rows: int, width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Embedding(rows, width), nn.Linear(width, 4))


@pytest.mark.parametrize(
    ("state", "network", "message"),
    [
        (with_kernel(5).state_dict(), with_kernel(3), r"`0.weight`: its shape is \[8, 1, 5, 5\]"),
        (with_rows(9, 5).state_dict(), with_rows(10), r"`0.weight`: its shape is \[9, 5\], .* axis 0"),
        (nn.Linear(8, 5).state_dict(), nn.Linear(8, 4), r"`weight`: .* only makes the network's \[4, 8\] smaller"),
        ({"weight": torch.ones(3, 8), "bias": torch.ones(2)}, nn.Linear(8, 4), r"`weight`: .* of `bias`"),
        ({"weight": torch.ones(0, 8), "bias": torch.ones(0)}, nn.Linear(8, 4), r"keeps a channel at least"),
        (pruned_reader().state_dict(), Reader(classes=5), r"`head.weight`: it had shape \[3, 16\] .* has \[5, 16\]"),
        (pruned_reader().state_dict(), Reader(heads=5), r"`encoder.qkv.weight`: it had shape"),
    ],
    ids=["kernel", "rows of an embedding", "grown", "weight and bias", "nothing", "classes", "width"],
)
@pytest.mark.parametrize("by", LOADERS)
def test_what_pruning_cannot_have_made_is_refused_and_nothing_changes(
    by: str, state: Any, network: nn.Module, message: str, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    path = saved(state, tmp_path / "other.pt")
    with pytest.raises(PlanError, match=message):
        LOADERS[by](path, network)
    assert equal(network.state_dict(), before)


def test_tensors_that_were_edited_after_they_were_saved_are_refused(tmp_path: Path) -> None:
    state = pruned_reader().state_dict()
    state["encoder.out.weight"] = state["encoder.out.weight"][:, 1:]
    with pytest.raises(PlanError, match=r"`encoder.out.weight`: its shape is .*, but it was saved with"):
        load_pruned(saved(state, tmp_path / "edited.pt"), Reader())


class FailsLate(Reader):
    """Its last part refuses its weights, when the rest has been loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Identity()
        self.last.register_load_state_dict_pre_hook(self.refuse)

    @staticmethod
    def refuse(module: nn.Module, *args: Any) -> None:
        raise RuntimeError("a part that refuses")


@pytest.mark.parametrize("by", LOADERS)
def test_a_load_that_fails_late_changes_nothing(by: str, tmp_path: Path) -> None:
    network, path = FailsLate(), saved(pruned_reader().state_dict(), tmp_path / "a.pt")
    parameters, hooks = [*network.parameters()], len(network._state_dict_hooks)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    held = attributes_of(network), network.encoder.heads, network.encoder.width
    with pytest.raises(RuntimeError, match="a part that refuses"):
        LOADERS[by](path, network)
    assert equal(network.state_dict(), before) and len(network._state_dict_hooks) == hooks
    assert (attributes_of(network), network.encoder.heads, network.encoder.width) == held
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))


def test_an_absent_weight_is_torchs_own_error_and_changes_nothing() -> None:
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = {name: value for name, value in small_network(seed=1).state_dict().items() if name != "8.bias"}
    with loading_pruned(), pytest.raises(RuntimeError, match=r"Missing key.*8\.bias"):
        network.load_state_dict(state)
    assert equal(network.state_dict(), before)


def test_a_trainer_says_what_torch_says_of_another_number_of_classes() -> None:
    network = Reader(classes=5)
    network.register_load_state_dict_pre_hook(follow_checkpoint_shapes)
    with pytest.raises(RuntimeError, match=r"size mismatch for head\.weight"):
        network.load_state_dict(pruned_reader().state_dict())


# --- damaged and edited files ---------------------------------------------------------------------------------------


def flipped(content: bytes, at: float) -> bytes:
    place = int(len(content) * at)
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


def place_of(content: bytes, marker: bytes) -> float:
    return (content.rindex(marker) + 0.5) / len(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: b"",
        lambda c: c[:-1],
        lambda c: c[: len(c) // 2],
        lambda c: c[:10],
        lambda c: b"no checkpoint at all",
        lambda c: flipped(c, place_of(c, b"\x80\x02")),
        lambda c: flipped(c, (c.index(b"data/0") + 200.5) / len(c)),
        lambda c: flipped(c, place_of(c, b"PK\x05\x06")),
    ],
    ids=["empty", "short", "half", "the beginning", "text", "bit in the pickle", "bit in a weight", "bit in the end"],
)
def test_a_damaged_file_is_one_clear_error(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save(nn.Linear(64, 32).state_dict(), file)
    (tmp_path / "damaged.pt").write_bytes(damage(file.getvalue()))
    with pytest.raises(PlanError, match=r"damaged\.pt to be a file that `torch\.save` .* Copy or save it again\."):
        load_pruned(tmp_path / "damaged.pt", nn.Linear(64, 40))


def test_any_flipped_bit_is_an_error_or_changes_nothing_that_is_read(tmp_path: Path) -> None:
    file, smaller = io.BytesIO(), nn.Linear(8, 3)
    torch.save(smaller.state_dict(), file)
    path = tmp_path / "flipped.pt"
    for place in range(0, len(file.getvalue()), 13):
        path.write_bytes(flipped(file.getvalue(), place / len(file.getvalue())))
        network = nn.Linear(8, 4)
        try:
            load_pruned(path, network)
        except PlanError:
            continue
        assert equal(network.state_dict(), smaller.state_dict())


def test_no_such_file_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_pruned(tmp_path / "absent.pt", nn.Linear(1, 1))


def test_a_whole_module_in_a_file_is_told_from_a_state_dict(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="but got a Linear"):
        load_pruned(saved(nn.Linear(1, 1), tmp_path / "a.pt"), nn.Linear(1, 1), weights_only=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("__class__.training_step", 1), ("__class__.heads", 7), ("forward", 3), ("training", 0), ("qkv.__class__.x", 1),
     ("_version", 9), ("__dict__", 1), ("call_super_init", 1)],
)  # fmt: skip
def test_a_file_sets_nothing_but_sizes(name: str, value: int) -> None:
    module, attributes = Heads(), set(dir(Heads))
    before = {key: kept for key, kept in vars(module).items() if not isinstance(kept, dict)}
    set_attributes_of(module, {"": {name: value}})
    assert {key: vars(module)[key] for key in before} == before and vars(module).keys() >= before.keys()
    assert set(dir(Heads)) == attributes and not hasattr(Heads, "heads")


@pytest.mark.parametrize(
    "value", ["4", 4.0, True, -1, None, [4, 4], print, torch.ones(1)], ids=lambda value: type(value).__name__
)
def test_a_file_sets_sizes_to_integers_only(value: Any) -> None:
    module = Heads()
    with pytest.raises(PlanError, match=r"Expected the checkpoint to set `heads` of `Heads` to an int"):
        set_attributes_of(module, {"": {"width": 4, "heads": value}})
    assert (module.heads, module.width) == (4, 8)


@pytest.mark.parametrize("record", [7, {"attributes": []}, {"original": {"a": "b"}}, {"attributes": {"": 3}}])
def test_an_edited_record_is_one_clear_error(record: Any, tmp_path: Path) -> None:
    content = {"state_dict": dict(nn.Linear(8, 3).state_dict()), KEY: record}
    with pytest.raises(PlanError, match="damaged or edited"):
        load_pruned(saved(content, tmp_path / "a.ckpt"), nn.Linear(8, 4))
