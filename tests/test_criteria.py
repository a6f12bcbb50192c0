"""Drop and growth criteria: hand-computed choices, exact counts, ties, and the tables."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_dsl.sparsity.criteria import (
    DROP_CRITERIA,
    GROWTH_CRITERIA,
    DropContext,
    GrowthContext,
    relative_to_columns,
    relative_to_rows,
)
from recbole_dsl.sparsity.names import DROP_NAMES, GROWTH_NAMES
from recbole_dsl.sparsity.randomness import generator_for

WEIGHTS = torch.tensor([0.3, -0.1, 0.0, -0.5, 0.1, 0.2, -0.1])


def dropped(name: str, values: Tensor, k: int, **more) -> list[int]:
    """Indices a drop criterion chooses; all values are of one row unless ``row_pointers`` are given."""
    rows = more.pop("row_pointers", torch.tensor([0, values.numel()]))
    context = DropContext(values, more.pop("gradients", None), k, rows, **more)
    return DROP_CRITERIA[name](context).marks.nonzero().flatten().tolist()


def grown(name: str, seed: int = 0, **given) -> Tensor:
    """Scores of a growth criterion."""
    context = {"gradients": None, "ever_live": None, **given}
    return GROWTH_CRITERIA[name].score(GrowthContext(generator=generator_for(seed, "test"), **context))


def test_tables_have_exactly_the_names_that_settings_allow() -> None:
    """Settings are checked against names.py, so the tables must have those rows, in that order."""
    assert tuple(DROP_CRITERIA) == DROP_NAMES
    assert tuple(GROWTH_CRITERIA) == GROWTH_NAMES


def test_magnitude_drops_the_smallest_and_the_first_of_equals() -> None:
    """|w| = .3 .1 0 .5 .1 .2 .1, so 0 goes first and then the .1 of lowest position."""
    assert dropped("magnitude", WEIGHTS, 1) == [2]
    assert dropped("magnitude", WEIGHTS, 2) == [1, 2]
    assert dropped("magnitude", WEIGHTS, 3) == [1, 2, 4]


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (2, [1, 2]),  # one of each sign: 0 (which counts as positive) and the first -0.1
        (3, [1, 2, 4]),  # the positive side gives the odd one
        (4, [1, 2, 4, 6]),
        (6, [1, 2, 3, 4, 5, 6]),  # all three negatives
        (7, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_set_drops_half_of_each_sign(k: int, expected: list[int]) -> None:
    """SET: the smallest positive and the largest negative weights, k/2 of each."""
    assert dropped("set", WEIGHTS, k) == expected


def test_set_takes_the_rest_from_the_other_sign() -> None:
    """When a sign runs out, the other one gives the rest."""
    assert dropped("set", torch.tensor([-3.0, 5.0, -1.0, -2.0]), 4) == [0, 1, 2, 3]
    assert dropped("set", torch.tensor([-3.0, 5.0, -1.0, -2.0, -4.0]), 4) == [0, 1, 2, 3]
    assert dropped("set", torch.tensor([3.0, 5.0, -1.0, 2.0, 4.0]), 4) == [0, 2, 3, 4]


def test_set_takes_infinite_weights_last_and_none_twice() -> None:
    """Of two positive and two negative ones, all four."""
    inf = float("inf")
    assert dropped("set", torch.tensor([inf, -1.0, -2.0, inf]), 4) == [0, 1, 2, 3]
    assert dropped("set", torch.tensor([inf, -1.0, 2.0, -inf]), 2) == [1, 2]


def test_taylor_drops_the_smallest_product_with_the_gradient() -> None:
    """A large weight without gradient goes before a small one with much gradient."""
    values, gradients = torch.tensor([5.0, 0.1, 1.0]), torch.tensor([0.0, -20.0, 1.0])
    assert dropped("taylor", values, 1, gradients=gradients) == [0]
    assert dropped("taylor", values, 2, gradients=gradients) == [0, 2]


def test_row_magnitude_compares_with_the_row() -> None:
    """Rows (3, 4), none, (.03, .01): relative to their RMS √12.5, √.0005 they are .85, 1.13, 1.34, .45."""
    values, pointers = torch.tensor([3.0, -4.0, 0.03, 0.01]), torch.tensor([0, 2, 2, 4], dtype=torch.int32)
    assert dropped("row_magnitude", values, 1, row_pointers=pointers) == [3]
    assert dropped("row_magnitude", values, 2, row_pointers=pointers) == [0, 3]
    assert dropped("row_magnitude", values, 3, row_pointers=pointers) == [0, 1, 3]
    assert dropped("magnitude", values, 2) == [2, 3]


def test_row_magnitude_takes_zeros_first_and_rows_of_zeros_too() -> None:
    """A row of zeros has no scale; its weights are 0."""
    values, pointers = torch.tensor([0.0, 0.0, 5.0, 0.0, 1.0]), torch.tensor([0, 2, 5])
    assert dropped("row_magnitude", values, 3, row_pointers=pointers) == [0, 1, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_row_magnitude_of_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    """Squares of small numbers would vanish: 2⁻¹⁴ squared is below what half precision has."""
    values, pointers = torch.tensor([3.0, 4.0, 2.0, 1.0]).to(dtype) * 2.0**-14, torch.tensor([0, 2, 4])
    assert dropped("row_magnitude", values, 1, row_pointers=pointers) == [3]


@pytest.mark.parametrize(
    ("power", "expected"), [(0.5, [3 / 5**0.5, 4 / 5**0.5, 0, 2**0.5]), (1.0, [0.6, 0.8, 0, 1])]
)
def test_growth_scores_relative_to_rows(power: float, expected: list[float]) -> None:
    """Norms 5 and 2."""
    scores = relative_to_rows(torch.tensor([3.0, 4.0, 0.0, 2.0]), 2, power)
    torch.testing.assert_close(scores, torch.tensor(expected))


def test_rows_without_scores_stay_without() -> None:
    """Nothing to divide by."""
    assert relative_to_rows(torch.zeros(4), 2, 0.5).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("power", "expected"),
    [(0.0, [3, 0, 4, 2]), (0.5, [3 / 5**0.5, 0, 4 / 5**0.5, 2**0.5]), (1.0, [0.6, 0, 0.8, 1])],
)
def test_growth_scores_relative_to_columns(power: float, expected: list[float]) -> None:
    """Two rows, whose columns have the norms 5 and 2."""
    scores = relative_to_columns(torch.tensor([3.0, 0.0, 4.0, 2.0]), torch.tensor([5.0, 2.0]), power)
    assert scores.tolist() == pytest.approx(expected)


def test_a_column_without_gradients_stays_at_zero() -> None:
    assert relative_to_columns(torch.zeros(4), torch.zeros(2), 0.5).tolist() == [0, 0, 0, 0]


def test_threshold_drops_only_what_is_below_and_at_most_k() -> None:
    """Strictly below the threshold, the smallest first."""
    assert dropped("threshold", WEIGHTS, 7, threshold=0.2) == [1, 2, 4, 6]
    assert dropped("threshold", WEIGHTS, 2, threshold=0.2) == [1, 2]
    assert dropped("threshold", WEIGHTS, 7, threshold=1e-9) == [2]


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(DROP_NAMES),
    weights=st.lists(st.integers(-2, 2), min_size=1, max_size=20),
    share=st.floats(0, 1),
)
def test_exactly_k_distinct_weights_are_dropped(name: str, weights: list, share: float) -> None:
    """Every criterion drops k weights (threshold: at most), none twice, in ascending order."""
    values = torch.tensor(weights, dtype=torch.float32)
    k = int(share * len(weights))
    indices = dropped(name, values, k, gradients=values, threshold=1.5)
    below = sum(abs(w) < 1.5 for w in weights)
    assert len(indices) == (min(k, below) if name == "threshold" else k)
    assert indices == sorted(set(indices))


@pytest.mark.parametrize("name", ["accumulated_gradient", "last_gradient", "momentum"])
def test_gradient_growth_scores_are_absolute(name: str) -> None:
    """The sign of a gradient sum does not matter."""
    scores = grown(name, gradients=torch.tensor([-2.0, 0.0, 1.0]), count=3)
    assert scores.tolist() == [2.0, 0.0, 1.0]


@pytest.mark.parametrize("name", ["random", "random_never_live"])
def test_random_growth_is_positive_and_fixed_by_the_seed(name: str) -> None:
    """Every position may be grown, and the same seed gives the same scores, another one others."""
    known = {"count": 500, "ever_live": torch.zeros(500, dtype=torch.bool)}
    scores = grown(name, **known)
    assert scores.min() > 0
    assert scores.unique().numel() == 500
    assert torch.equal(scores, grown(name, **known))
    assert not torch.equal(scores, grown(name, seed=1, **known))


def test_positions_that_never_lived_come_before_all_others() -> None:
    """The worst of the never-live positions outranks the best that lived."""
    ever_live = torch.arange(200) % 2 == 0
    scores = grown("random_never_live", count=200, ever_live=ever_live)
    assert scores[~ever_live].min() > scores[ever_live].max()


def test_only_the_last_gradient_has_a_fixed_window_and_only_momentum_keeps_scores() -> None:
    """What sets the gradient criteria apart is in their rows."""
    assert {n: c.window for n, c in GROWTH_CRITERIA.items() if c.window} == {"last_gradient": 1}
    assert [n for n, c in GROWTH_CRITERIA.items() if c.keeps_scores] == ["momentum"]
    assert [n for n, c in GROWTH_CRITERIA.items() if not c.needs_gradient] == [
        "random",
        "random_never_live",
    ]


def test_no_criterion_draws_from_a_global_generator() -> None:
    """torch's, numpy's and Python's own generators stay where they were."""
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    for name in DROP_NAMES:
        dropped(name, WEIGHTS, 3, gradients=WEIGHTS, threshold=0.2)
    for name in GROWTH_NAMES:
        grown(name, gradients=WEIGHTS, count=7, ever_live=WEIGHTS > 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert repr(np.random.get_state()) == before[1]
    assert random.getstate() == before[2]
