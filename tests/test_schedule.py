"""The schedule of the update ratio: the paper's cosine, a line, a constant."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_dsl.sparsity.names import SCHEDULE_NAMES
from recbole_dsl.sparsity.schedule import SCHEDULES, update_ratio


def test_table_has_exactly_the_names_that_settings_allow() -> None:
    """Settings are checked against names.py."""
    assert tuple(SCHEDULES) == SCHEDULE_NAMES


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("cosine", 25, 0.1 + 0.4 * (2 + math.sqrt(2)) / 4),
        ("cosine", 50, 0.3),
        ("cosine", 75, 0.1 + 0.4 * (2 - math.sqrt(2)) / 4),
        ("cosine", 100, 0.1),
        ("linear", 25, 0.4),
        ("linear", 100, 0.1),
        ("constant", 25, 0.5),
        ("constant", 100, 0.5),
    ],
)
def test_ratio_by_hand(schedule: str, step: int, expected: float) -> None:
    """α from 0.5 to 0.1 over 100 steps."""
    assert update_ratio(schedule, step, 100, 0.5, 0.1) == pytest.approx(expected, abs=1e-12)


@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_constant_ratio_is_the_one_that_was_set(low: float, high: float) -> None:
    """To the last bit, or floor(α · budget) would be one short: 0.05 + (0.21 - 0.05) < 0.21."""
    assert update_ratio("constant", 3, 10, high, low) == high


@settings(max_examples=80, deadline=None)
@given(
    schedule=st.sampled_from(SCHEDULE_NAMES),
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    end=st.integers(1, 10_000),
    data=st.data(),
)
def test_ratio_stays_in_bounds_and_never_rises(schedule, bounds, end, data) -> None:
    """α_min ≤ α_t ≤ α, and a later step never has a larger ratio."""
    low, high = sorted(bounds)
    step = data.draw(st.integers(1, end))
    later = data.draw(st.integers(step, end))
    now, then = (update_ratio(schedule, t, end, high, low) for t in (step, later))
    assert low - 1e-12 <= then <= now + 1e-12 <= high + 2e-12
