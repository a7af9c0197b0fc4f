"""Matrix products, attention, embeddings: labels of a summed axis are tied, all others are those of the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune.groups.find import find_groups
from tests.labels.rules.laws import Labelled, check_dependence, check_removal, randn, tensors

# name -> (function, operands, components that can be removed, live)
CASES: dict[str, tuple[Callable[..., Any], list[Tensor], int, bool]] = {
    "linear": (F.linear, [randn(2, 4), randn(3, 4), randn(3)], 2 + 4 + 3, False),
    "linear_3d_without_bias": (F.linear, [randn(2, 5, 4), randn(3, 4)], 2 + 5 + 4 + 3, False),
    "linear_1d": (F.linear, [randn(4), randn(3, 4)], 4 + 3, False),
    "mm": (torch.mm, [randn(2, 4), randn(4, 3)], 2 + 4 + 3, False),
    "bmm": (torch.bmm, [randn(5, 2, 4), randn(5, 4, 3)], 5 + 2 + 4 + 3, False),
    "mv": (torch.mv, [randn(2, 4), randn(4)], 2 + 4, False),
    "dot": (torch.dot, [randn(4), randn(4)], 0, False),
    "addmm": (torch.addmm, [randn(3), randn(2, 4), randn(4, 3)], 2 + 4 + 3, False),
    "baddbmm": (torch.baddbmm, [randn(5, 2, 3), randn(5, 2, 4), randn(5, 4, 3)], 5 + 2 + 4 + 3, False),
    "addbmm": (torch.addbmm, [randn(2, 3), randn(5, 2, 4), randn(5, 4, 3)], 5 + 2 + 4 + 3, False),
    "matmul_broadcast": (torch.matmul, [randn(5, 1, 2, 4), randn(3, 4, 6)], 5 + 3 + 2 + 4 + 6, False),
    "outer": (torch.outer, [randn(4), randn(3)], 4 + 3, False),
    "addr": (torch.addr, [randn(4, 3), randn(4), randn(3)], 4 + 3, False),
    "inner": (torch.inner, [randn(2, 4), randn(3, 4)], 2 + 4 + 3, False),
    "vecdot": (lambda a, b: torch.linalg.vecdot(a, b, dim=0), [randn(4, 3), randn(4, 3)], 4 + 3, False),
    "tensordot": (
        lambda a, b: torch.tensordot(a, b, dims=([2, 0], [0, 1])),
        [randn(2, 5, 4), randn(4, 2, 3)],
        2 + 5 + 4 + 3,
        False,
    ),
    "multi_dot": (lambda *xs: torch.linalg.multi_dot(xs), [randn(2, 4), randn(4, 3), randn(3, 5)], 14, False),
    "bilinear": (F.bilinear, [randn(2, 4), randn(2, 5), randn(3, 4, 5), randn(3)], 2 + 4 + 5 + 3, False),
    "attention_over_heads": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
        [randn(2, 4, 3, 5), randn(2, 4, 6, 5), randn(2, 4, 6, 7)],
        2 + 4 + 3 + 7,
        True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_removal_is_zeroing(name: str) -> None:
    function, operands, count, live = CASES[name]
    assert check_removal(function, operands, live) == count or name == "dot"


@pytest.mark.parametrize("name", CASES)
def test_a_result_depends_on_a_component_only_where_it_carries_it(name: str) -> None:
    function, operands, _, live = CASES[name]
    check_dependence(function, operands, live)


@st.composite
def equations(draw: st.DrawFn) -> tuple[str, list[tuple[int, ...]]]:
    sizes = dict(zip("abcd", draw(st.lists(st.integers(1, 3), min_size=4, max_size=4)), strict=True))
    terms = draw(st.lists(st.text("abcd", min_size=1, max_size=3), min_size=1, max_size=3))
    letters = sorted(set("".join(terms)))
    result = "".join(draw(st.permutations(letters))[: draw(st.integers(0, len(letters)))])
    shapes = [tuple(sizes[c] for c in term) for term in terms]
    if draw(st.booleans()):
        terms, shapes = [f"...{t}" for t in terms], [(2, *s) if draw(st.booleans()) else s for s in shapes]
        result = f"...{result}"
    arrow = draw(st.booleans()) or "..." in result
    return ",".join(terms) + (f"->{result}" if arrow else ""), shapes


@settings(max_examples=150)
@given(equations())
def test_any_einsum(case: tuple[str, list[tuple[int, ...]]]) -> None:
    equation, shapes = case
    operands = [randn(*s) for s in shapes]
    check_removal(lambda *xs: torch.einsum(equation, *xs), operands)
    assert [r.shape for r in Labelled(lambda *xs: torch.einsum(equation, *xs), operands).results][-1] == tuple(
        torch.einsum(equation, *operands).shape
    )


@settings(max_examples=80)
@given(st.data())
def test_matmul_of_all_ranks(data: st.DataObject) -> None:
    inner = data.draw(st.integers(1, 4))
    batch = [data.draw(st.lists(st.sampled_from([1, 3]), max_size=2)) for _ in range(2)]
    a = (*batch[0], data.draw(st.integers(1, 3)), inner) if data.draw(st.booleans()) else (inner,)
    b = (*batch[1], inner, data.draw(st.integers(1, 3))) if data.draw(st.booleans()) else (inner,)
    labelled = Labelled(torch.matmul, [randn(*a), randn(*b)])
    assert [r.shape for r in labelled.results] == [tuple(t.shape) for t in tensors(torch.matmul(randn(*a), randn(*b)))]
    check_removal(torch.matmul, [randn(*a), randn(*b)])


@pytest.mark.parametrize(
    ("function", "operands"),
    [
        (lambda q, k: q @ k.mT, [randn(3, 5), randn(4, 5)]),
        (lambda q, k: torch.einsum("nc,mc->nm", q, k), [randn(3, 5), randn(4, 5)]),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), [randn(3, 5), randn(4, 5), randn(4, 6)]),
    ],
    ids=["matmul", "einsum", "attention"],
)
def test_the_width_that_sets_a_temperature_is_locked(function: Callable[..., Any], operands: list[Tensor]) -> None:
    labelled = Labelled(function, operands, live=True)
    width = labelled.roots_of(0)[1]
    assert width is not None
    assert all("sets the scale" in labelled.outcome.locked[int(root)] for root in width)


@pytest.mark.parametrize("function", [F.embedding, F.embedding_bag], ids=["one_by_one", "in_bags"])
def test_embedding_rows_are_locked_and_columns_are_free(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    index = torch.tensor([[0, 2], [1, 1]])
    labelled = Labelled(lambda table: function(index, table), [randn(4, 6)])
    rows, columns = labelled.roots_of(0)
    assert set(rows.tolist()) <= set(labelled.outcome.locked)  # type: ignore[union-attr]
    assert labelled.removable() == sorted(columns.tolist())  # type: ignore[union-attr]


EDGES = torch.eye(5, dtype=torch.double).roll(1, 0).to_sparse()


class OverEdges(nn.Module):
    """Sums up neighbours by a sparse buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)
        self.register_buffer("edges", EDGES.float())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sparse.addmm(x := self.first(x), self.edges, x))


@pytest.mark.parametrize(
    ("function", "units"),
    [
        (lambda x: torch.sparse.mm(EDGES, x), 4),
        (lambda x: torch.sparse.addmm(x, EDGES, x), 4),
        (lambda x: EDGES @ x, 4),
    ],
    ids=["mm", "addmm", "matmul"],
)
def test_a_product_with_a_sparse_matrix_loses_columns_only(function: Callable[[Tensor], Tensor], units: int) -> None:
    assert check_removal(function, [randn(5, 4)], live=True) == units


def test_a_sparse_buffer_keeps_its_size() -> None:
    groups = find_groups(OverEdges(), torch.randn(5, 3))
    assert {g.name: [s.tensor for s in g.slices] for g in groups} == {
        "first": ["first.weight", "first.bias", "last.weight"]
    }
