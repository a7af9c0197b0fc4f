"""Which channels can be removed: for every tiny network, exactly which groups, which locks, and why."""

from __future__ import annotations

import inspect
import random
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_taylor_prune.cost import flop_counter
from lightning_taylor_prune.errors import VerificationError
from lightning_taylor_prune.groups.families import layer_name
from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.pruning.prune import prune_
from tests import networks
from tests.networks import NETWORKS, conv
from tests.oracles import (
    TOLERANCE,
    differences,
    masked_error,
    prepared,
    random_units,
    randomize_norms_,
    state_of,
    to_dtype,
    training_step,
)
from tests.random_networks import PadChannels, Split

# Per network: the groups with their sizes; and per locked layer, how many channels and what its reason names: the
# operator, or "output" for outputs of the network.
EXPECTED: dict[str, tuple[dict[str, int], dict[str, list[tuple[int, str]]]]] = {
    "sequential": ({"0": 10, "2": 14}, {"4": [(5, "output")]}),
    "conv_bn": ({"0": 10, "3": 14}, {"6.2": [(5, "output")]}),
    "norm_without_affine": ({"0": 10, "3": 12}, {"6.2": [(5, "output")]}),
    "flatten_to_linear": ({"0": 10, "5": 12}, {"7": [(5, "output")]}),
    "prelu_per_channel": ({"0": 10, "2": 12}, {"4.2": [(5, "output")]}),
    "conv1d": ({"0": 10, "3": 12}, {"6": [(5, "output")]}),
    "conv3d": ({"0": 10, "3": 12}, {"7": [(5, "output")]}),
    "conv_transpose": ({"0": 10, "2": 12}, {"5": [(5, "output")]}),
    "conv_transpose_grouped": ({"0": 4}, {"5": [(5, "output")]}),
    "depthwise_separable": ({"0": 10, "5": 12}, {"7.2": [(5, "output")]}),
    "depthwise_multiplier_2": ({"0": 10}, {"5": [(5, "output")]}),
    "grouped": ({"0": 6}, {"6.2": [(5, "output")]}),
    "group_norm_6_without_affine": ({"0": 6, "3": 10}, {"5.2": [(5, "output")]}),
    "group_norm_12": ({"0": 12, "3": 10}, {"5.2": [(5, "output")]}),
    "group_norm_6": ({"0": 6, "3": 10}, {"5.2": [(5, "output")]}),
    "group_norm_2": ({"0": 6, "3": 10}, {"5.2": [(5, "output")]}),
    "group_norm_1": ({"0": 12, "3": 10}, {"5.2": [(5, "output")]}),
    "layer_norm": ({"0": 12}, {"3": [(5, "output")]}),
    "rms_norm": ({"0": 12}, {"3": [(5, "output")]}),
    "layer_norm_over_images": ({"0": 10}, {"3": [(5, "output")]}),
    "local_response_norm": ({"2": 12}, {"0": [(10, "aten.avg_pool3d")], "4": [(5, "output")]}),
    "instance_norm": ({"0": 10, "3": 12}, {"6": [(5, "output")]}),
    "pixel_shuffle": ({"0": 6, "3": 10}, {"5": [(5, "output")]}),
    "channel_shuffle_module": ({"0": 4}, {"3": [(5, "output")]}),
    "glu": ({"0": 10}, {"2": [(5, "output")]}),
    "softmax_over_channels": ({"0": 10}, {"2": [(5, "output")]}),
    "unfold_patches": ({"0": 8}, {"3": [(5, "output")]}),
    "spectral_norm": ({"0": 10, "2": 12}, {"4": [(5, "output")]}),
    "weight_norm": ({"0": 10, "2": 12}, {"4": [(5, "output")]}),
    "old_spectral_norm": ({"0": 10, "2": 12}, {"4": [(5, "output")]}),
    "old_weight_norm": ({"0": 10, "2": 12}, {"4": [(5, "output")]}),
    "frozen": ({"0": 10, "3": 14}, {"6.2": [(5, "output")]}),
    "residual": ({"stem": 12, "a": 10}, {"head.2": [(5, "output")]}),
    "residual_in_place": ({"stem": 12, "a": 10}, {"head.2": [(5, "output")]}),
    "projection_shortcut": ({"stem": 12, "a": 10, "b": 16}, {"head.2": [(5, "output")]}),
    "option_a_constant": (
        {"stem": 8, "a": 10, "c": 12},
        {"b": [(8, "aten.pad")], "d": [(8, "aten.pad")], "head.2": [(5, "output")]},
    ),
    "option_a_from_shapes": (
        {"stem": 8, "a": 10, "c": 12},
        {"b": [(8, "aten.pad")], "d": [(8, "aten.pad")], "head.2": [(5, "output")]},
    ),
    "option_a_pad_after": ({"stem": 8, "a": 10, "b": 8, "c": 12}, {"head.2": [(5, "output")]}),
    "option_a_cat_zeros": ({"stem": 8, "a": 10, "b": 8, "c": 12}, {"head.2": [(5, "output")]}),
    "option_a_cat_itself": ({"stem": 8, "a": 10, "c": 12}, {"head.2": [(5, "output")]}),
    "dense_concat": ({"stem": 10, "a": 6, "b": 6}, {"head.2": [(5, "output")]}),
    "squeeze_excite": ({"stem": 12, "squeeze": 6}, {"last": [(5, "output")]}),
    "squeeze_excite_linear": ({"stem": 12, "squeeze": 6}, {"last": [(5, "output")]}),
    "cbam": ({"stem": 12}, {"last": [(5, "output")], "spatial": [(2, "aten.conv2d")]}),
    "max_over_channels": ({"stem": 12}, {"last": [(5, "output")]}),
    "gate_by_expand": ({"stem": 12}, {"last": [(5, "output")]}),
    "gate_by_expand_constant": ({}, {"stem": [(12, "aten.mul")], "last": [(5, "output")]}),
    "parameter_list_gates": ({"stem": 12, "middle": 10}, {"last": [(5, "output")]}),
    "interpolate": ({"stem": 12}, {"last": [(5, "output")]}),
    "chunk_cat": ({"stem": 6}, {"last": [(5, "output")]}),
    "chunk_3_of_uneven": ({}, {"stem": [(1, "aten.slice"), (11, "aten.chunk")], "last": [(5, "output")]}),
    "slice_cat": ({"stem": 6}, {"last": [(5, "output")]}),
    "slice_quarter": ({}, {"stem": [(12, "aten.slice")], "last": [(5, "output")]}),
    "slice_constant": ({}, {"stem": [(12, "aten.slice")], "last": [(5, "output")]}),
    "slice_max": ({}, {"stem": [(12, "aten.slice")], "last": [(5, "output")]}),
    "slice_from_the_end": ({}, {"stem": [(12, "aten.slice")], "last": [(5, "output")]}),
    "slice_one": ({"stem": 11}, {"stem": [(1, "aten.slice")], "last": [(5, "output")]}),
    "slice_strided": ({"stem": 6}, {"last": [(5, "output")]}),
    "slice_strided_window": ({}, {"stem": [(12, "aten.slice")], "last": [(5, "output")]}),
    "narrow": ({"stem": 6}, {"last": [(5, "output")]}),
    "split_with_sizes": ({}, {"stem": [(12, "aten.split_with_sizes")], "last": [(5, "output")]}),
    "split_one_and_rest": ({"stem": 11}, {"stem": [(1, "aten.tensor_split")], "last": [(5, "output")]}),
    "channel_index_list": ({}, {"stem": [(12, "aten.index")], "last": [(5, "output")]}),
    "channel_index_buffer": ({}, {"stem": [(12, "aten.index")], "last": [(5, "output")]}),
    "channel_select": ({}, {"stem": [(12, "aten.select")], "last": [(5, "output")]}),
    "channel_shuffle": ({"stem": 4}, {"last": [(5, "output")]}),
    "permute_then_flatten": ({"stem": 12}, {"last": [(5, "output")]}),
    "view_constant": ({}, {"stem": [(16, "aten.view")], "last": [(5, "output")]}),
    "view_minus_one": ({"stem": 16}, {"last": [(5, "output")]}),
    "maxout": ({"stem": 6}, {"last": [(5, "output")]}),
    "stack_and_sum": ({"stem": 6}, {"last": [(5, "output")]}),
    "repeat_channels": ({"stem": 12}, {"last": [(5, "output")]}),
    "roll_channels": ({}, {"stem": [(12, "aten.roll")], "last": [(5, "output")]}),
    "cumsum_over_channels": ({}, {"stem": [(12, "aten.cumsum")], "last": [(5, "output")]}),
    "topk_over_channels": ({}, {"stem": [(12, "aten.topk")], "last": [(5, "output")]}),
    "in_place_on_slice": ({}, {"stem": [(12, "aten.slice")], "last": [(5, "output")]}),
    "in_place_copy_into_empty": ({"stem": 12}, {"last": [(5, "output")]}),
    "scaled_by_width": ({}, {"stem": [(12, "aten.mul")], "last": [(5, "output")]}),
    "positions_by_arange": ({}, {"stem": [(12, "aten.mul")], "last": [(5, "output")]}),
    "buffer_scale": ({"stem": 12}, {"last": [(5, "output")]}),
    "plain_tensor_scale": ({}, {"stem": [(12, "aten.mul")], "last": [(5, "output")]}),
    "functional_conv": ({"kernel_a": 10}, {"kernel_c": [(5, "output")]}),
    "functional_conv_constant_groups": (
        {},
        {"kernel_a": [(10, "aten.conv2d")], "kernel_b": [(10, "aten.conv2d")], "kernel_c": [(5, "output")]},
    ),
    "weight_standardised": ({"stem": 12}, {"last": [(5, "output")]}),
    "weight_standardised_by_batch_norm": ({"0": 10, "4": 12, "6": 14}, {"8.2": [(5, "output")]}),
    "weight_standardised_in_rows": ({"stem": 12, "middle": 10}, {"last": [(5, "output")], "middle": [(10, "output")]}),
    "weight_standardised_at_once": ({"stem": 12, "middle": 10}, {"last": [(5, "output")], "middle": [(10, "output")]}),
    "weight_standardised_axis_by_axis": (
        {"stem": 12, "middle": 10},
        {"last": [(5, "output")], "middle": [(10, "output")]},
    ),
    "weight_standardised_as_layer": ({"stem": 12, "middle": 10}, {"last": [(5, "output")], "middle": [(10, "output")]}),
    "tied_weights": ({"encoder": 12}, {"last": [(5, "output")]}),
    "tied_transposed": ({"encoder": 12}, {"encoder": [(9, "aten.linear")]}),
    "embedding": ({"table": 12}, {"last": [(5, "output")]}),
    "used_twice": ({"stem": 12}, {"last": [(5, "output")]}),
    "never_called": ({"stem": 12}, {"last": [(5, "output")], "spare": [(10, "output")]}),
    "inner_product": ({}, {"a": [(12, "aten.matmul")], "b": [(12, "aten.matmul")], "last": [(5, "output")]}),
    "bilinear": ({"a": 12, "b": 8, "both": 10}, {"last": [(5, "output")]}),
    "max_unpool": ({"stem": 12}, {"last": [(5, "output")]}),
    "fourier_filter": ({"stem": 12}, {"last": [(5, "output")]}),
    "scattered_messages": ({"embed": 12, "message": 10}, {"last": [(5, "output")]}),
    "einsum": ({"weight": 12, "mixing": 10}, {"last": [(5, "output")]}),
    "attention_qkv": ({"embed": 10, "qkv": 4}, {"last": [(5, "output")]}),
    "attention_qkv_by_head_width": ({"embed": 10, "qkv": 4}, {"last": [(5, "output")]}),
    "attention_qkv_split": ({"embed": 10, "qkv": 4}, {"last": [(5, "output")]}),
    "attention_single_head": ({"embed": 10}, {"qkv": [(36, "aten.matmul")], "last": [(5, "output")]}),
    "attention_single_head_separate": (
        {"v": 12},
        {"q": [(8, "aten.matmul")], "k": [(8, "aten.matmul")], "last": [(5, "output")]},
    ),
    "multihead_attention": ({"embed": 4, "hidden": 16}, {"last": [(5, "output")]}),
    "channel_attention": ({"embed": 10}, {"qkv": [(36, "aten.matmul")], "last": [(5, "output")]}),
    "lstm_after_conv": ({"a": 10, "b": 8, "lstm": 6}, {"last": [(5, "output")]}),
    "lstm_two_directions": ({"embed": 8, "lstm": 6}, {"last": [(4, "output")]}),
    "lstm_projected": ({"embed": 8, "lstm": 9, "lstm#2": 5}, {"last": [(4, "output")]}),
    "gru_last_states": ({"embed": 8, "gru": 6}, {"last": [(4, "output")]}),
    "gru_packed": ({"embed": 8, "gru": 6}, {"last": [(4, "output")]}),
    "rnn_learned_state": ({"embed": 8, "rnn": 6}, {"last": [(4, "output")]}),
    "lstm_encoder_decoder": ({"embed": 8, "encoder": 6}, {"last": [(4, "output")]}),
    "recurrent_cells": ({"embed": 8, "lstm": 10, "gru": 7, "rnn": 6}, {"last": [(4, "output")]}),
    "recurrent_normalised": ({"embed": 8, "gru": 6}, {"last": [(4, "output")]}),
    "deformable": (
        {"stem": 6, "deformed": 10},
        {"offset": [(36, "torchvision.deform_conv2d")], "last": [(5, "output")]},
    ),
    "graph_convolution": ({"embed": 8}, {"last": [(4, "output")]}),
    "weights_per_example": (
        {"route": 4},
        {
            "stem": [(12, "aten.conv2d")],
            "kernels": [(8, "aten.conv2d"), (12, "aten.conv2d"), (6, "aten.conv2d")],
            "last": [(5, "output")],
        },
    ),
    "auxiliary_head": ({"stem": 12, "middle": 10, "aux.0": 8}, {"last.2": [(5, "output")], "aux.3.2": [(5, "output")]}),
    "training_branch": ({"stem": 12}, {"last": [(5, "output")]}),
    "nested_inputs_dataclass_output": ({"left": 10}, {"shown": [(8, "output")], "last.2": [(5, "output")]}),
    "keeps_last_activation": ({"stem": 12}, {"middle": [(12, "output")], "last": [(5, "output")]}),
    "list_appends": ({"stem": 12, "blocks.0": 12, "blocks.1": 12, "blocks.2": 12}, {"last": [(5, "output")]}),
    "appends_to_attribute": ({"stem": 12}, {"last": [(5, "output")]}),
    "squeeze_in_place": ({"stem": 12}, {"last": [(5, "output")]}),
    "input_channels_reach_output": ({"stem": 12, "last": 5}, {"back": [(3, "aten.add")]}),
    "input_concatenated": ({"stem": 12}, {"last": [(5, "output")]}),
}
INEXACT = {
    "group_norm_2": {"0"},
    "group_norm_1": {"0"},
    "layer_norm": {"0"},
    "rms_norm": {"0"},
    "layer_norm_over_images": {"0"},
    "softmax_over_channels": {"0"},
    "spectral_norm": {"0", "2"},
    "old_spectral_norm": {"0"},
    "weight_norm": {"0", "2"},
    "recurrent_normalised": {"gru"},
    "cbam": {"stem"},
    "max_over_channels": {"stem"},
    "maxout": {"stem"},
    "weight_standardised": {"stem"},
    "weight_standardised_by_batch_norm": {"0", "4"},
    "weight_standardised_in_rows": {"stem"},
    "weight_standardised_at_once": {"stem"},
    "weight_standardised_axis_by_axis": {"stem"},
    "weight_standardised_as_layer": {"stem"},
}

# Groups that meet a normalisation, a mean or a maximum across channels: removing is not the same as zeroing there.


@cache
def analysed(name: str) -> ChannelGroups:
    network = NETWORKS[name]
    return find_groups(network.build(), network.example())


def source_lines(name: str) -> range:
    """Return the lines of the class that the network's code is in, base classes of the same file included."""
    spans = [
        inspect.getsourcelines(c) for c in type(NETWORKS[name].build()).__mro__ if c.__module__ == networks.__name__
    ]
    return range(min(start for _, start in spans), max(start + len(lines) for lines, start in spans))


def test_every_network_has_an_expectation() -> None:
    assert EXPECTED.keys() == NETWORKS.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_groups_and_their_sizes(name: str) -> None:
    assert {group.name: group.num_channels for group in analysed(name)} == EXPECTED[name][0]


@pytest.mark.parametrize("name", EXPECTED)
def test_removal_equals_zeroing_but_for_normalisation_across_channels(name: str) -> None:
    assert {group.name for group in analysed(name) if not group.exact} == INEXACT.get(name, set())


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_locked_says_why_and_where(name: str) -> None:
    found: dict[str, list[tuple[int, str]]] = {}
    for locked in analysed(name).locked:
        operator = re.search(r"\(((aten|torchvision)\.\w+)", locked.reason)
        found.setdefault(locked.name, []).append((locked.num_channels, operator[1] if operator else "output"))
        line = re.search(r"networks\.py:(\d+)\)", locked.reason)
        assert (
            not operator
            or "module `" in locked.reason
            or "torchvision" in locked.reason
            or (line and int(line[1]) in source_lines(name))
        ), locked
    assert found == EXPECTED[name][1]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_writer_is_in_a_group_or_locked(name: str) -> None:
    groups = analysed(name)
    axes, writers = groups.structure.propagation.axes, groups.structure.propagation.writers
    free = sum(int((groups.units_on(number) >= 0).sum()) for number in writers)
    layers = {layer_name(axes[number].tensor) for number in writers}
    counted = [entry for entry in groups.locked if entry.name in layers and "is not used" not in entry.reason]
    locked = sum(entry.num_channels for entry in counted)
    assert free + locked == sum(axes[number].size for number in writers)


def unexplained(groups: ChannelGroups) -> list[str]:
    """Return the parameters that no unit touches, and of which nothing says why."""
    structure = groups.structure
    named = {entry.name for entry in groups.locked}
    roots_of: dict[str, set[int]] = {}
    for number, axis in enumerate(structure.propagation.axes):
        roots_of.setdefault(axis.tensor, set()).update(structure.roots_on(number).tolist())
    explained = {*groups.unit_roots.tolist()}
    for tensor, roots in roots_of.items():
        if layer_name(tensor) in named:
            explained |= roots
    parameters = structure.propagation.traces[0].is_parameter
    return [name for name, roots in roots_of.items() if name in parameters and explained.isdisjoint(roots)]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_in_a_group_or_explained(name: str) -> None:
    assert unexplained(analysed(name)) == []


class LockedWithoutWriter(nn.Module):
    """Parameters whose channels no weight writes: of a normalisation before a fixed state, and one that is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.cell, self.last = nn.LayerNorm(8), nn.LSTMCell(8, 12), nn.Linear(12, 3)
        self.returned = nn.Parameter(torch.ones(4, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.last(self.cell(self.norm(x))[0]), self.returned


def test_parameters_are_explained_whose_channels_no_weight_writes() -> None:
    locked = find_groups(LockedWithoutWriter(), torch.zeros(2, 8)).locked
    assert {entry.name: entry.num_channels for entry in locked} == {"last": 3, "norm": 8, "returned": 4}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", NETWORKS)
def test_finding_groups_does_not_change_the_network(name: str, training: bool) -> None:
    network = NETWORKS[name]
    model, example = network.build().train(training), network.example()
    model.register_forward_hook(lambda *_: None)
    next(model.children(), model).eval()
    before, generators = state_of(model), (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    find_groups(model, example)
    assert differences(before, state_of(model)) == []
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1] == random.getstate()
    assert (generators[2] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_half_the_flops_before_and_after(name: str) -> None:
    network = NETWORKS[name]
    model, example = network.build(), network.example()
    groups = find_groups(model, example)
    plan = groups.plan(random_units(groups))
    before = flops(model, example)
    prune_(model, plan)
    assert (2 * groups.macs, 2 * groups.after(plan).macs) == (before, flops(model, example))


def flops(model: nn.Module, example: tuple[Any, ...]) -> int:
    with flop_counter() as counter:
        model(*example)
    return counter.get_total_flops()


# --- the main oracle ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_equals_masked(name: str, dtype: torch.dtype) -> None:
    network = NETWORKS[name]
    model, example, groups = prepared(network.build(), network.example(), dtype)
    plan = groups.plan(random_units(groups))
    exact = all(groups[group].exact for group in plan.removed)
    error = masked_error(model, randomize_norms_(network.build()).to(dtype), plan, example)
    assert error <= (TOLERANCE[dtype] if exact else 3.0)
    training_step(model, example)


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=6)
@given(data=st.data())
def test_any_plan_is_right_or_refused(name: str, data: st.DataObject) -> None:
    """Whatever units are chosen: the outcome equals the masked network, or the plan is refused and nothing changes."""
    network = NETWORKS[name]
    groups = analysed_in_double(name)
    model, example = double(name), to_dtype(network.example(), torch.float64)
    chosen = {g.name: data.draw(subsets(g.num_channels), label=g.name) for g in groups if g.num_channels > 1}
    plan = groups.plan(chosen)
    before = state_of(model)
    try:
        error = masked_error(model, double(name), plan, example)
    except VerificationError:
        assert differences(before, state_of(model)) == []
    else:
        assert error <= 1e-10 or not all(groups[group].exact for group in plan.removed)


def subsets(size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, size - 1), unique=True, max_size=size - 1)


@cache
def analysed_in_double(name: str) -> ChannelGroups:
    return find_groups(double(name), to_dtype(NETWORKS[name].example(), torch.float64))


def double(name: str) -> nn.Module:
    return randomize_norms_(NETWORKS[name].build()).double()


class MaskedPatches(nn.Module):
    """Positions that are combined with a constant and then flattened with the channels, as in patch merging."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Linear(24, 5)
        self.register_buffer("mask", torch.rand(4, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mask + self.first(x).permute(0, 2, 3, 1)
        patches = x.reshape(len(x), 2, 2, 2, 2, x.shape[-1]).permute(0, 1, 3, 4, 2, 5)
        return self.last(patches.flatten(3))


def test_channels_can_be_removed_that_are_flattened_with_locked_positions() -> None:
    groups = find_groups(MaskedPatches(), torch.zeros(2, 3, 4, 4))
    assert [(group.name, group.num_channels) for group in groups] == [("first", 6)]


UNLIKE_UNITS = {
    "padding of one channel": lambda: [
        conv(3, 5),
        nn.PixelUnshuffle(2),
        PadChannels(2, 1),
        PadChannels(3, 3),
        conv(29, 5),
    ],
    "halves that round": lambda: [
        conv(3, 10),
        Split([conv(5, 3), nn.Sequential()], "slice", 10),
        conv(8, 2, groups=2),
        conv(2, 5),
    ],
}


@pytest.mark.parametrize("name", UNLIKE_UNITS)
def test_units_of_every_group_can_be_removed_one_by_one_and_all_but_one(name: str) -> None:
    """Code that is right by chance for some units, by rounding or as none of them was padding, is found."""
    model = nn.Sequential(*UNLIKE_UNITS[name]())
    groups = find_groups(model, torch.zeros(2, 3, 8, 8))
    singly = [{g.name: [unit]} for g in groups for unit in range(g.num_channels) if g.num_channels > 1]
    mostly = [{g.name: range(g.num_channels - 1)} for g in groups]
    assert [groups.verify(model, groups.plan(removed)) for removed in [*singly, *mostly]] == [None] * (
        len(singly) + len(mostly)
    )


class KeysCache:
    """Holds keys, as caches of language models do."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


class Cached(nn.Module):
    """Returns its keys if that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.last = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, use_cache: bool = True) -> dict[str, Any]:
        keys = self.keys(x)
        return {"logits": self.last(keys), **({"past_key_values": KeysCache(keys)} if use_cache else {})}


def test_a_returned_cache_locks_and_says_how_to_do_without() -> None:
    locked = find_groups(Cached(), torch.zeros(2, 8)).locked
    assert "`use_cache=False`" in {entry.name: entry.reason for entry in locked}["keys"]
    assert "keys" in find_groups(Cached(), torch.zeros(2, 8), {"use_cache": False})
