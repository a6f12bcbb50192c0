"""Top-k and bottom-k are exact and break ties by the lowest index."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_dsl.sparsity.selection import ScoredBlock, highest_positive_k, keep_lowest

TIED_SCORES = st.lists(st.integers(-2, 2).map(float), max_size=30)


def first_by(scores: list[float], k: int, sign: int) -> list[int]:
    """The naive answer: sort by (score, index), take k, in ascending order of index."""
    order = sorted(range(len(scores)), key=lambda i: (sign * scores[i], i))
    return sorted(order[: max(k, 0)])


@settings(max_examples=150, deadline=None)
@given(scores=TIED_SCORES, k=st.integers(0, 35))
def test_highest_positive_never_takes_zero_or_less(scores: list[float], k: int) -> None:
    """Only scores > 0 are chosen, so there may be fewer than k; in whatever blocks they come."""
    positive = sum(s > 0 for s in scores)
    for size in (1, 4, 100):
        found = highest_positive(torch.tensor(scores), k, size).tolist()
        assert found == first_by(scores, min(k, positive), sign=-1)


def highest_positive(scores: torch.Tensor, k: int, size: int = 2) -> torch.Tensor:
    """The choice from scores that come in blocks of ``size``."""
    return highest_positive_k(pieces(scores, size), k, scores.device)


def pieces(scores: torch.Tensor, size: int) -> list[ScoredBlock]:
    """Scores in blocks, all of which may be chosen."""
    parts = scores.split(size) if scores.numel() else ()
    return [(i * size, part, torch.ones_like(part, dtype=torch.bool)) for i, part in enumerate(parts)]


def test_scores_that_are_no_numbers_are_never_grown() -> None:
    """NaN and infinite scores are passed over."""
    scores = torch.tensor([float("nan"), 1.0, float("inf"), 2.0, -float("inf")])
    assert highest_positive(scores, 3).tolist() == [1, 3]


def lowest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The choice of the lowest scores."""
    marks = torch.ones_like(scores, dtype=torch.bool)
    keep_lowest(marks, lambda first, last: scores[first:last], k)
    return marks.nonzero().flatten()


@pytest.mark.parametrize("choose", [lowest, highest_positive])
def test_indices_are_int64_even_when_none(choose) -> None:
    """An empty choice has the type of a choice, so it can be concatenated and used as an index."""
    assert choose(torch.tensor([1.0, 2.0]), 0).dtype == torch.int64
    assert choose(torch.tensor([1.0, 2.0]), 1).dtype == torch.int64
    assert choose(torch.tensor([]), 3).tolist() == []


def test_what_is_no_number_has_a_place_in_the_order() -> None:
    """Infinity is higher than every finite score, and NaN higher than that."""
    scores = torch.tensor([float("nan"), float("inf"), 3.0, float("nan"), 1.0])
    assert [lowest(scores, k).tolist() for k in (2, 3, 4)] == [[2, 4], [1, 2, 4], [0, 1, 2, 4]]


def test_neighbouring_numbers_are_no_ties() -> None:
    """However close floating-point numbers are, they are told apart."""
    one = torch.ones(())
    scores = torch.stack([torch.nextafter(one, one * 2), one, torch.nextafter(one, one * 2)])
    assert lowest(scores, 1).tolist() == [1]
    assert highest_positive(scores, 1).tolist() == [0]
