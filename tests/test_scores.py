"""Growth scores: the map between positions and scored rows, memory bounds, what counts and what not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_dsl.errors import ConfigError
from recbole_dsl.sparsity.scores import GrowthScores, PositionMap, sample_rows, sampled_row_counts

CPU = torch.device("cpu")
SHAPES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(shapes=SHAPES, memory=st.integers(1, 10_000), size=st.sampled_from([4, 8]))
def test_a_sample_keeps_its_bound(shapes: list[tuple[int, int]], memory: int, size: int) -> None:
    """At least a row of every tensor and no more bytes than allowed; a refusal names what would do."""
    dtype = {4: torch.float32, 8: torch.float64}[size]
    try:
        counts = sampled_row_counts(shapes, size, memory)
    except ConfigError as error:
        least = int(str(error).split("at least ")[1].split()[0])
        assert least > memory
        sampled_row_counts(shapes, size, least)
        return
    where = sample_rows(shapes, size, memory, torch.Generator().manual_seed(0), CPU)
    if counts is None:
        assert where.rows is None
    else:
        assert [r.numel() for r in where.rows] == counts
        assert all(1 <= c <= rows for c, (rows, _) in zip(counts, shapes, strict=True))
    assert GrowthScores(where, dtype, CPU).bytes <= memory


@settings(max_examples=80, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 99), data=st.data())
def test_positions_and_slots_are_inverse(shapes: list[tuple[int, int]], seed: int, data) -> None:
    """Ascending slots are ascending positions, and rows that are not scored have none."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        torch.randperm(n, generator=generator)[: data.draw(st.integers(1, n))].sort().values for n, _ in shapes
    ]
    where = PositionMap(shapes, rows)
    slots = torch.arange(where.count)
    positions = where.positions(slots)
    assert (positions.diff() > 0).all()
    assert torch.equal(where.slots(positions), slots)
    everywhere = where.slots(torch.arange(sum(n * c for n, c in shapes)))
    assert torch.equal(everywhere[everywhere >= 0], slots)


def scores_of_rows(rows: list[int]) -> GrowthScores:
    """Scores of some rows of a 4 × 2 table."""
    return GrowthScores(PositionMap([(4, 2)], [torch.tensor(rows)]), torch.float32, CPU)


def test_gradients_count_once_the_step_is_made() -> None:
    """Handed in: nothing yet; committed: summed, divided by the loss scale; discarded: gone."""
    scores = scores_of_rows([1, 3])
    scores.add_rows(0, torch.tensor([1, 0, 1]), torch.tensor([[1.0, 2.0], [9.0, 9.0], [3.0, 4.0]]))
    assert not scores.sums.any()
    scores.commit()
    assert scores.sums.tolist() == [4.0, 6.0, 0.0, 0.0]
    scores.add_dense(0, torch.full((4, 2), 8.0))
    scores.discard()
    scores.commit()
    assert scores.sums.tolist() == [4.0, 6.0, 0.0, 0.0]
    scores.add_dense(0, torch.full((4, 2), 8.0))
    scores.commit(torch.tensor(4.0))
    assert scores.sums.tolist() == [6.0, 8.0, 2.0, 2.0]


def test_scores_move_to_another_sample() -> None:
    """Rows in both samples keep their sums, new ones start at zero."""
    scores = scores_of_rows([0, 1, 3])
    scores.add_dense(0, torch.arange(8.0).view(4, 2))
    scores.commit()
    moved = scores.moved_to(PositionMap([(4, 2)], [torch.tensor([1, 2, 3])]))
    assert moved.sums.tolist() == [2.0, 3.0, 0.0, 0.0, 6.0, 7.0]


def test_one_row_beside_many() -> None:
    """A single-row tensor always has its row scored; the bound falls on the large one."""
    shapes = [(1, 64), (1000, 64)]
    counts = sampled_row_counts(shapes, 4, 200_000)
    assert counts is not None and counts[0] == 1 and 700 < counts[1] < 1000
    with pytest.raises(ConfigError, match="allowed is at least 4532 bytes"):
        sampled_row_counts(shapes, 4, 4531)
    assert sampled_row_counts(shapes, 4, 4532) == [1, 1]
