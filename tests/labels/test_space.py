"""Union-find over labels: an equivalence relation, whatever the order of unions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_taylor_prune.labels.space import Labels, LabelSpace, axes_of, first_along, on_axis

COUNT = 40
PAIRS = st.lists(st.lists(st.tuples(*[st.integers(0, COUNT - 1)] * 2), min_size=1, max_size=6), max_size=12)


def united(batches: list[list[tuple[int, int]]]) -> LabelSpace:
    space = LabelSpace()
    space.fresh(COUNT)
    for batch in batches:
        a, b = np.array(batch).T
        space.unite(a, b)
    return space


def reference(batches: list[list[tuple[int, int]]]) -> list[set[int]]:
    """Return the component of every label, with plain Python sets."""
    component = [{i} for i in range(COUNT)]
    for a, b in (pair for batch in batches for pair in batch):
        together = component[a] | component[b]
        for member in together:
            component[member] = together
    return component


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda space: space.unite(np.array([1]), np.array([2])), id="unite"),
        pytest.param(lambda space: space.lock(np.array([1]), "why"), id="lock"),
        pytest.param(lambda space: space.mark_inexact(np.array([1])), id="inexact"),
        pytest.param(lambda space: space.fresh(1), id="fresh"),
    ],
)
def test_what_is_done_to_a_copy_is_not_done_to_the_original(change: Callable[[LabelSpace], object]) -> None:
    def state(space: LabelSpace) -> object:
        return space.roots().tolist(), space.locked(), space.inexact().tolist()

    space = united([[(0, 1)]])
    before, other = state(space), space.copy()
    change(other)
    assert state(space) == before != state(other)


@given(PAIRS)
def test_components_equal_those_of_plain_sets(batches: list[list[tuple[int, int]]]) -> None:
    roots = united(batches).roots()
    assert [set(np.flatnonzero(roots == root).tolist()) for root in roots] == reference(batches)


@given(PAIRS)
def test_the_root_is_the_smallest_label_of_its_component(batches: list[list[tuple[int, int]]]) -> None:
    assert united(batches).roots().tolist() == [min(component) for component in reference(batches)]


@given(PAIRS, st.randoms())
def test_the_order_of_unions_does_not_matter(batches: list[list[tuple[int, int]]], random) -> None:  # type: ignore[no-untyped-def]
    pairs = [pair for batch in batches for pair in batch]
    random.shuffle(pairs)
    assert united([[p] for p in pairs]).roots().tolist() == united(batches).roots().tolist()


@given(PAIRS, st.lists(st.integers(0, COUNT - 1), max_size=5))
def test_locks_spread_over_components_with_the_first_reason(
    batches: list[list[tuple[int, int]]], locked: list[int]
) -> None:
    space = LabelSpace()
    space.fresh(COUNT)
    for number, label in enumerate(locked):
        space.lock(np.array([label]), f"reason {number}")
    for batch in batches:
        space.unite(*np.array(batch).T)
    component, reasons = reference(batches), space.locked()
    assert reasons == {
        min(component[label]): next(f"reason {i}" for i, other in enumerate(locked) if other in component[label])
        for label in locked
    }


@given(PAIRS, st.lists(st.integers(0, COUNT - 1), max_size=5))
def test_inexact_marks_spread_over_components(batches: list[list[tuple[int, int]]], marked: list[int]) -> None:
    space = united(batches)
    space.mark_inexact(np.array(marked, dtype=np.int64))
    assert space.inexact().tolist() == sorted({min(reference(batches)[label]) for label in marked})


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=5))
def test_fresh_labels_are_new_and_components_of_their_own(counts: list[int]) -> None:
    space = LabelSpace()
    labels = np.concatenate([space.fresh(count) for count in counts])
    assert labels.tolist() == list(range(sum(counts))) == space.roots().tolist()


def test_uniting_broadcasts() -> None:
    space = LabelSpace()
    rows, columns = on_axis(space.fresh(2), 0, 2), on_axis(space.fresh(3), 1, 2)
    space.unite(rows, columns)
    assert len(set(space.roots().tolist())) == 1


def test_uniting_along_an_axis_does_not_unite_along_the_others() -> None:
    space = LabelSpace()
    labels = space.fresh(6).reshape(2, 3)
    assert space.unite_along(labels, 1).shape == (2, 1)
    assert space.find(labels).tolist() == [[0, 0, 0], [3, 3, 3]]


def test_an_axis_varies_until_its_labels_are_united() -> None:
    space = LabelSpace()
    labels = space.fresh(6).reshape(2, 3)
    before = space.varies(labels)
    space.unite_along(labels, 0)
    assert (before, space.varies(labels)) == ((0, 1), (1,))


@given(st.data())
def test_merged_fields_share_no_axis_and_lose_no_label(data: st.DataObject) -> None:
    space, shape = LabelSpace(), (2, 3, 2)
    fields = []
    for _ in range(data.draw(st.integers(1, 4))):
        sizes = [n if data.draw(st.booleans()) else 1 for n in shape]
        fields.append(space.fresh(int(np.prod(sizes))).reshape(sizes))
    merged = space.merge(fields)
    axes = [axis for field in merged for axis in axes_of(field)]
    assert len(axes) == len(set(axes))
    roots = [space.find(np.broadcast_to(field, shape)) for field in merged]
    for field in fields:
        own = space.find(np.broadcast_to(field, shape))
        assert (own == own.flat[0]).all() or any((own == other).all() for other in roots)


@pytest.mark.parametrize(("axis", "found"), [(1, True), (-2, True), (0, False), (2, False)])
def test_the_field_along_an_axis(axis: int, found: bool) -> None:
    value = Labels((2, 3, 4), (on_axis(np.arange(3), 1, 3),))
    assert (value.along(axis) is not None) == found


def test_first_along_keeps_the_axis() -> None:
    assert first_along(np.arange(6).reshape(2, 3), 1).tolist() == [[0], [3]]
