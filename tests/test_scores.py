"""Growth scores: the map between positions and scored rows, memory bounds, what counts and what not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import recbole_dsl.sparsity.scores
from recbole_dsl.errors import ConfigError
from recbole_dsl.sparsity.budget import sampled_row_counts, scored_row_counts, split_score_memory
from recbole_dsl.sparsity.scores import SMALL_TABLE, GrowthScores, Landing, PositionMap, sample_rows

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
    assert where.row_slots is not None
    for (n, _), chosen, inverse in zip(shapes, rows, where.row_slots, strict=True):
        assert torch.equal(inverse[chosen], torch.arange(chosen.numel(), dtype=torch.int32))
        assert int((inverse >= 0).sum()) == chosen.numel() and inverse.numel() == n


@settings(max_examples=80, deadline=None)
@given(shapes=SHAPES, sampled=st.booleans(), size=st.integers(1, 40))
def test_blocks_are_whole_rows_of_all_slots(shapes: list[tuple[int, int]], sampled: bool, size: int) -> None:
    """Whatever their size, they follow each other from the first slot to the last, row by row."""
    where = PositionMap(shapes, [torch.arange(0, n, 2) for n, _ in shapes] if sampled else None)
    blocks = list(where.blocks(size))
    assert [b.first for b in blocks] == [0, *(b.last for b in blocks[:-1])]
    assert blocks[-1].last == where.count
    for block in blocks:
        cols = shapes[block.tensor][1]
        assert block.last - block.first <= max(size, cols)
        first_position = where.position_starts[block.tensor] + int(block.rows[0]) * cols
        assert int(where.positions(torch.tensor([block.first]))) == first_position
        assert block.rows.numel() * cols == block.last - block.first


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


def test_passes_before_a_step_are_held_as_one_sum() -> None:
    """Of eight passes one sum is held for each tensor and columns, and nobody's gradient is written to."""
    scores = GrowthScores(PositionMap([(4, 2), (4, 2)]), torch.bfloat16, CPU)
    first = torch.full((4, 2), 256.0, dtype=torch.bfloat16)
    scores.add_dense(0, first)
    for _ in range(7):
        scores.add_dense(0, torch.ones(4, 2, dtype=torch.bfloat16))  # which bfloat16 would not add to 256
        scores.add_columns(1, 0, torch.ones(4, 1))
        scores.add_columns(1, 1, torch.full((4, 1), 2.0))
    assert len(scores._pending) == 3
    assert torch.equal(first, torch.full_like(first, 256.0))
    scores.commit()
    assert scores.sums.tolist() == [263.0] * 8 + [7.0, 14.0] * 4


def test_columns_have_their_norms_over_the_scored_rows() -> None:
    """Of every tensor of a group, whatever its width; rows that are not scored count nothing."""
    scores = GrowthScores(
        PositionMap([(2, 2), (2, 1)], [torch.tensor([0, 1]), torch.tensor([1])]), torch.float32, CPU
    )
    scores.add_dense(0, torch.tensor([[3.0, 0.0], [-4.0, 2.0]]))
    scores.add_dense(1, torch.tensor([[7.0], [-1.0]]))
    scores.commit()
    assert [norms.tolist() for norms in scores.column_norms()] == [[5.0, 2.0], [1.0]]


def test_kernels_add_the_same_rows_in_the_same_order() -> None:
    """To the last bit, repeated rows and gradients that are no whole memory included."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(50, (300,), generator=draw)
    wide = torch.randn(300, 14, generator=draw)
    found = []
    for kernels in ("auto", "torch"):
        for gradient in (wide[:, :7].contiguous(), wide[:, :7]):
            scores = GrowthScores(PositionMap([(50, 7)]), torch.float32, CPU, kernels)
            scores.add_rows(0, ids, gradient)
            scores.commit()
            found.append(scores.sums)
    assert all(torch.equal(sums, found[0]) for sums in found) and found[0].any()


def test_scores_move_to_another_sample() -> None:
    """Rows in both samples keep their sums, new ones start at zero."""
    scores = scores_of_rows([0, 1, 3])
    scores.add_dense(0, torch.arange(8.0).view(4, 2))
    scores.commit()
    memory = scores.sums.data_ptr()
    scores.move_to(PositionMap([(4, 2)], [torch.tensor([1, 2, 3])]))
    assert scores.sums.tolist() == [2.0, 3.0, 0.0, 0.0, 6.0, 7.0] and scores.sums.data_ptr() == memory
    scores.add_dense(0, torch.ones(4, 2))
    scores.commit()
    assert scores.sums.tolist() == [3.0, 4.0, 1.0, 1.0, 7.0, 8.0]


def test_many_passes_before_a_step_hold_no_more_than_a_table_and_one_of_them() -> None:
    """Their sum is what they would add to one after the other; what is thrown away is none of it."""
    gradient = torch.nn.Parameter(torch.zeros(6))
    gradient.grad = torch.ones(6)
    scores = GrowthScores(PositionMap([(20, 3)]), torch.float32, CPU)
    ids, held = torch.arange(8), []
    for number in range(10):
        scores.add_rows(0, ids + number % 3, torch.full((8, 3), float(number)))
        scores.land(lambda: Landing.of(gradient.grad, None))
        held.append(sum(len(part.gradient) for part in scores._pending))
    assert max(held) <= 20 + 8
    scores.commit()
    expected = torch.zeros(20, 3)
    for number in range(10):
        expected[ids + number % 3] += number
    assert torch.equal(scores.sums.view(20, 3), expected)


def test_many_passes_before_a_step_are_added_up_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """To add their sum as well with every further pass would take a whole table's time each."""
    gradient, added = torch.nn.Parameter(torch.zeros(6)), []
    gradient.grad = torch.ones(6)
    adds = recbole_dsl.sparsity.scores.add_dense_rows
    monkeypatch.setattr(
        "recbole_dsl.sparsity.scores.add_dense_rows", lambda *a: (added.append(len(a[2])), adds(*a))
    )
    scores = GrowthScores(PositionMap([(20, 3)]), torch.float32, CPU)
    for _ in range(12):
        scores.add_rows(0, torch.arange(8), torch.ones(8, 3))
        scores.land(lambda: Landing.of(gradient.grad, None))
    scores.commit()
    assert added == [8] * 12
    assert scores.sums.view(20, 3)[:, 0].tolist() == [12.0] * 8 + [0.0] * 12


@pytest.mark.parametrize("spans", [None, [torch.tensor([[700, 990], [705, 1000]])], [torch.tensor([[0], [5]])]])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_gradient_is_cleared_once_it_is_zero_and_was_not(
    spans: list[torch.Tensor] | None, earlier: bool
) -> None:
    """Wherever it was other than zero; what is clipped is not cleared, nor what was zero from the start."""
    arriving, gradient = torch.zeros(1000), torch.zeros(1000) if earlier else None
    landing = Landing.of(gradient, arriving.clone(), spans)
    assert not landing.is_cleared(torch.zeros(1000).mul_(2)) and landing.is_cleared(None)
    arriving[702] = torch.nan
    landing = Landing.of(gradient, arriving, spans)
    assert not landing.is_cleared(arriving.mul_(0.5)) and landing.is_cleared(arriving.zero_())


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_handed_in_is_not_what_others_write_to(whole: bool) -> None:
    """A gradient may become that of another parameter too, and be clipped before the step, and ids refilled."""
    scores, gradient = GrowthScores(PositionMap([(4, 2)]), torch.float32, CPU), torch.ones(4, 2)
    ids = torch.arange(4)
    if whole:
        scores.add_dense(0, gradient)
    else:
        scores.add_rows(0, ids, gradient)
    gradient.mul_(1e-3)
    ids.zero_()
    scores.commit()
    assert scores.sums.tolist() == [1.0] * 8


def test_one_row_beside_many() -> None:
    """A single-row tensor always has its row scored; the bound falls on the large one."""
    shapes = [(1, 64), (1000, 64)]
    counts = sampled_row_counts(shapes, 4, 200_000)
    assert counts is not None and counts[0] == 1 and 700 < counts[1] < 1000
    with pytest.raises(ConfigError, match="allowed is at least 4532 bytes"):
        sampled_row_counts(shapes, 4, 4531)
    assert sampled_row_counts(shapes, 4, 4532) == [1, 1]


@settings(max_examples=150, deadline=None)
@given(
    shapes=SHAPES, memory=st.none() | st.integers(1, 10_000), share=st.floats(0.01, 1.0),
    size=st.sampled_from([4, 8]),
)  # fmt: skip
def test_both_bounds_hold_together(
    shapes: list[tuple[int, int]], memory: int | None, share: float, size: int
) -> None:
    """Neither more rows than the share nor more bytes than the memory, and at least a row of each tensor."""
    dtype = {4: torch.float32, 8: torch.float64}[size]
    try:
        counts = scored_row_counts(shapes, size, memory, share)
    except ConfigError as error:
        least = int(str(error).split("at least ")[1].split()[0])
        assert memory is not None and least > memory
        scored_row_counts(shapes, size, least, share)
        return
    where = sample_rows(shapes, size, memory, torch.Generator().manual_seed(0), CPU, share)
    scored = [n for n, _ in shapes] if where.rows is None else [r.numel() for r in where.rows]
    assert counts is None or scored == counts
    for n, (rows, _) in zip(scored, shapes, strict=True):
        assert 1 <= n <= max(1, share * rows + 0.5)
    assert memory is None or GrowthScores(where, dtype, CPU).bytes <= memory


@settings(max_examples=100, deadline=None)
@given(
    bounds=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=4),
    more=st.integers(0, 300),
)
def test_groups_share_a_memory(bounds: list[tuple[int, int]], more: int) -> None:
    """Each has its least; all of it together is not exceeded; where it is enough for all, each has its most."""
    least, most = [low for low, _ in bounds], [low + lack for low, lack in bounds]
    memory = sum(least) + more
    shares = split_score_memory(memory, least, most)
    assert all(low <= own <= high for low, own, high in zip(least, shares, most, strict=True))
    assert sum(shares) <= memory and (memory < sum(most) or shares == most)
    assert min(memory, sum(most)) - sum(shares) < max(1, len(bounds))


def test_without_a_memory_bound_the_share_is_exact() -> None:
    """Rounded half up, at least one row; a share of 1 means all rows, without a sample's bookkeeping."""
    assert scored_row_counts([(1000, 4), (3, 4), (50, 4)], 4, None, 0.25) == [250, 1, 13]
    assert scored_row_counts([(1000, 4), (3, 4)], 4, None, 1.0) is None
    assert scored_row_counts([(1000, 4), (3, 4)], 4, None, 0.9999) is None


def test_large_tables_are_sampled_without_an_order_of_all_rows() -> None:
    """Distinct ascending rows, from the whole table."""
    rows = SMALL_TABLE + 1
    where = sample_rows([(rows, 1)], 4, None, torch.Generator().manual_seed(0), CPU, 1e-4)
    assert where.rows is not None
    (chosen,) = where.rows
    assert chosen.numel() == where.count == 419
    assert (chosen.diff() > 0).all() and chosen[0] >= 0 and rows * 0.9 < chosen[-1] < rows
