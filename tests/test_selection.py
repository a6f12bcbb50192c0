"""Top-k and bottom-k are exact and break ties by the lowest index."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_dsl.sparsity.selection import ScoredBlock, highest_k, highest_positive_k, lowest_k

TIED_SCORES = st.lists(st.integers(-2, 2).map(float), max_size=30)


def first_by(scores: list[float], k: int, sign: int) -> list[int]:
    """The naive answer: sort by (score, index), take k, in ascending order of index."""
    order = sorted(range(len(scores)), key=lambda i: (sign * scores[i], i))
    return sorted(order[: max(k, 0)])


@settings(max_examples=150, deadline=None)
@given(scores=TIED_SCORES, k=st.integers(-1, 35))
def test_lowest_and_highest_equal_a_stable_sort(scores: list[float], k: int) -> None:
    """Both choose what a stable sort chooses, for any k and many ties."""
    tensor = torch.tensor(scores)
    assert lowest_k(tensor, k).tolist() == first_by(scores, k, sign=1)
    assert highest_k(tensor, k).tolist() == first_by(scores, k, sign=-1)


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


@pytest.mark.parametrize("choose", [lowest_k, highest_k, highest_positive])
def test_indices_are_int64_even_when_none(choose) -> None:
    """An empty choice has the type of a choice, so it can be concatenated and used as an index."""
    assert choose(torch.tensor([1.0, 2.0]), 0).dtype == torch.int64
    assert choose(torch.tensor([1.0, 2.0]), 1).dtype == torch.int64
    assert choose(torch.tensor([]), 3).tolist() == []


def test_infinite_scores_are_ordered() -> None:
    """Infinities take part in the order like any other score."""
    scores = torch.tensor([float("inf"), 1.0, -float("inf"), float("inf")])
    assert lowest_k(scores, 3).tolist() == [0, 1, 2]
    assert highest_k(scores, 2).tolist() == [0, 3]


def test_nan_has_a_place_in_the_order() -> None:
    """It counts as higher than every number for the lowest, and as lower for the highest."""
    scores = torch.tensor([float("nan"), 3.0, float("nan"), 1.0])
    assert lowest_k(scores, 2).tolist() == [1, 3]
    assert lowest_k(scores, 3).tolist() == [0, 1, 3]
    assert highest_k(scores, 1).tolist() == [1]
    assert highest_k(scores, 3).tolist() == [0, 1, 3]


def test_denormal_differences_are_no_ties() -> None:
    """Neighbouring floating-point numbers are told apart."""
    one = torch.ones(())
    scores = torch.stack([torch.nextafter(one, one * 2), one, torch.nextafter(one, one * 2)])
    assert lowest_k(scores, 1).tolist() == [1]
    assert highest_k(scores, 1).tolist() == [0]
