"""Integer budgets from a density, from bytes, and over several tensors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_dsl.packed.group import PackedGroup
from recbole_dsl.sparsity.budget import (
    allocate,
    budget_of_bytes,
    budget_of_density,
    erdos_renyi_shares,
)

SHAPES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=3)


def bytes_of_real_group(shapes: list[tuple[int, int]], budget: int) -> int:
    """Bytes a packed group with that many live weights really takes."""
    names = [f"t{i}" for i in range(len(shapes))]
    group = PackedGroup("g", names, shapes, torch.arange(budget), torch.zeros(budget))
    return group.weight_bytes + group.index_bytes


@pytest.mark.parametrize(
    ("weights", "density", "budget"),
    [
        (10, 0.25, 3),
        (10, 0.24, 2),
        (10, 1.0, 10),
        (10, 0.001, 1),
        (3, 0.5, 2),
        (1, 0.1, 1),
        (10**18 + 1, 1.0, 10**18 + 1),
    ],
)
def test_budget_of_density_by_hand(weights: int, density: float, budget: int) -> None:
    """Rounded half up, at least one weight, never more than there are."""
    assert budget_of_density(weights, density) == budget


@settings(max_examples=80, deadline=None)
@given(shapes=SHAPES, memory=st.integers(0, 2000))
def test_budget_of_bytes_is_the_largest_that_fits(shapes, memory: int) -> None:
    """A real group with that budget fits into the memory, one with a weight more does not."""
    budget = budget_of_bytes(memory, shapes)
    if budget >= 1:
        assert bytes_of_real_group(shapes, budget) <= memory
    if 0 <= budget < sum(r * c for r, c in shapes):
        assert bytes_of_real_group(shapes, budget + 1) > memory
    if budget < 1:
        assert bytes_of_real_group(shapes, 1) > memory


@pytest.mark.parametrize("columns", [256, 257, 2**15, 2**15 + 1])
def test_budget_of_bytes_knows_the_size_of_column_ids(columns: int) -> None:
    """At the borders of the index types the calculation agrees with what is really stored."""
    shapes = [(3, columns), (2, 7)]
    budget = budget_of_bytes(1000, shapes)
    assert bytes_of_real_group(shapes, budget) <= 1000 < bytes_of_real_group(shapes, budget + 1)


def test_row_pointers_of_eight_bytes_cost_no_weights() -> None:
    """From 2³¹ weights on pointers take eight bytes: where that leaves fewer, one less than 2³¹ fit."""
    shapes = [(2**29, 8)]
    pointers, per_weight = 2**29 + 1, 5
    just = 4 * pointers + per_weight * 2**31
    assert budget_of_bytes(just, shapes) == budget_of_bytes(just - 1, shapes) == 2**31 - 1
    assert budget_of_bytes(8 * pointers + per_weight * 2**31, shapes) == 2**31


def test_allocate_by_hand() -> None:
    """Proportional; what a full tensor cannot take goes to the others; last unit to the first."""
    assert allocate(10, [1, 1], [10, 10]) == [5, 5]
    assert allocate(10, [3, 1], [4, 10]) == [4, 6]
    assert allocate(3, [1, 1], [10, 10]) == [2, 1]
    assert allocate(7, [0, 0], [5, 5]) == [4, 3]
    assert allocate(5, [0, 1], [5, 2]) == [3, 2]
    third = 10**18  # beyond what a float counts
    assert allocate(3 * third + 1, [third] * 3, [2 * third] * 3) == [third + 1, third, third]


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 50)), min_size=1, max_size=6),
    data=st.data(),
)
def test_allocate_is_exact_and_respects_caps(parts, data) -> None:
    """The parts sum to the total and none is negative or above its cap."""
    shares, caps = [s for s, _ in parts], [c for _, c in parts]
    total = data.draw(st.integers(0, sum(caps)))
    result = allocate(total, shares, caps)
    assert sum(result) == total
    assert all(0 <= part <= cap for part, cap in zip(result, caps, strict=True))


def test_allocate_refuses_more_than_fits() -> None:
    """A total above all caps is an error of the caller."""
    with pytest.raises(ValueError, match="cannot place 11 weights"):
        allocate(11, [1, 1], [5, 5])


def test_erdos_renyi_shares_by_hand() -> None:
    """2-D: rows + columns. A convolution 8×4×3×3: ER counts (8+4)·9, the kernel rule 8+4+3+3."""
    shapes = [(100, 10), (20, 30), (8, 4, 3, 3)]
    assert erdos_renyi_shares(shapes, kernel=False) == pytest.approx([110, 50, 108])
    assert erdos_renyi_shares(shapes, kernel=True) == pytest.approx([110, 50, 18])


def test_erdos_renyi_budgets_by_hand() -> None:
    """160 weights over 100×10 and 20×30 split as 110 : 50."""
    shares = erdos_renyi_shares([(100, 10), (20, 30)], kernel=False)
    assert allocate(160, shares, [1000, 600]) == [110, 50]


def test_erdos_renyi_share_of_a_vector_is_its_dense_size_capped() -> None:
    """A 1-D tensor has ER density Σ dims / Π dims = 1, so its share is its length."""
    assert math.isclose(erdos_renyi_shares([(17,)], kernel=False)[0], 17)
