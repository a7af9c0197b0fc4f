"""Random operands and arguments for operators that move data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
Case = tuple[Callable[..., Any], list[tuple[int, ...]]]


def collect(cases: dict[str, Callable[[Draw], Case]]) -> Callable[[Callable[[Draw], Case]], Callable[[Draw], Case]]:
    """Return a decorator that adds a function to the cases of a file, under its name."""

    def case(function: Callable[[Draw], Case]) -> Callable[[Draw], Case]:
        cases[function.__name__] = function
        return function

    return case


def shapes(least: int = 1, most: int = 4, largest: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(1, largest), min_size=least, max_size=most).map(tuple)


def axis_of(draw: Draw, shape: tuple[int, ...]) -> int:
    return draw(st.integers(-len(shape), len(shape) - 1))


def factors(draw: Draw, number: int) -> list[int]:
    """Write a number as a product in some way."""
    found = []
    while number > 1:
        found.append(draw(st.sampled_from([d for d in range(1, number + 1) if number % d == 0])))
        number //= found[-1]
    return found or [1]
