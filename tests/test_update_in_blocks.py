"""An update goes through everything in blocks: their size changes nothing, and every step is exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recbole_dsl import SparseHandle, sparsify
from recbole_dsl.packed.index import build_index, is_index, rebuild, slices_of
from recbole_dsl.sparsity import rows, selection, update
from recbole_dsl.sparsity.names import GROWTH_NAMES
from recbole_dsl.sparsity.rows import LiveRows
from recbole_dsl.sparsity.selection import highest_positive_k, keep_lowest
from tests.test_selection import pieces

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=3)
KERNELS = st.sampled_from(["auto", "torch"])


def lowest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Indices, ascending, of what a stable sort has first; NaN counts as higher than every number."""
    return scores.argsort(stable=True)[:k].sort().values


ODD = [0.0, 1.0, 1.5, 3e-6, float("inf"), float("nan"), 6e4]


@settings(max_examples=150, deadline=None)
@given(
    scores=st.lists(st.sampled_from(ODD) | st.floats(0, 10, width=16), max_size=40),
    marked=st.data(),
    k=st.integers(0, 45),
    block=st.sampled_from([1, 3, 100]),
    dtype=st.sampled_from(DTYPES),
    kernels=KERNELS,
)
def test_lowest_of_blocks_equals_lowest_of_all(scores, marked, k, block, dtype, kernels) -> None:
    """Whatever the marks and the type of the scores."""
    tensor = torch.tensor(scores, dtype=dtype)
    flags = st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))
    marks = torch.tensor(marked.draw(flags), dtype=torch.bool)
    candidates = marks.nonzero().flatten()
    expected = candidates[lowest(tensor[candidates], k)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "SCORES_PER_BLOCK", block)
        keep_lowest(marks, lambda first, last: tensor[first:last], k, kernels)
    assert torch.equal(marks.nonzero().flatten(), expected)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_close_scores_are_told_apart(dtype: torch.dtype, kernels: str) -> None:
    """Many random scores: the choice is that of a sort, to the last bit."""
    draw = torch.Generator().manual_seed(0)
    scores = torch.rand(20_000, generator=draw, dtype=torch.float64).to(dtype)
    marks = torch.ones(20_000, dtype=torch.bool)
    keep_lowest(marks, lambda first, last: scores[first:last], 7_777, kernels)
    assert torch.equal(marks.nonzero().flatten(), lowest(scores, 7_777))
    highest = highest_positive_k(pieces(scores, 999), 7_777, scores.device, kernels)
    order = scores.argsort(descending=True, stable=True)[:7_777]
    assert torch.equal(highest, order.sort().values)


@st.composite
def changes(draw) -> tuple[list[tuple[int, int]], list[int], list[int], list[int]]:
    """Shapes, live positions, and as many leaving (indices) as arriving (positions)."""
    shapes = draw(SHAPES)
    n = sum(r * c for r, c in shapes)
    live = sorted(draw(st.sets(st.integers(0, n - 1), min_size=1)))
    dead = [p for p in range(n) if p not in set(live)]
    most = min(len(live), len(dead))
    count = draw(st.integers(0, most))
    leaving = sorted(draw(st.permutations(range(len(live))))[:count])
    arriving = sorted(draw(st.permutations(dead))[:count])
    return shapes, live, leaving, arriving


@settings(max_examples=200, deadline=None)
@given(change=changes(), block=st.sampled_from([1, 4, 1000]), kernels=KERNELS)
def test_rebuilding_in_place_equals_building_anew(change, block: int, kernels: str) -> None:
    """Index, values and state after the change are those of the new topology."""
    shapes, live, leaving, arriving = change
    slices = slices_of([f"t{i}" for i in range(len(shapes))], shapes)
    values, state = torch.arange(len(live)).double() + 1, torch.arange(len(live)).float() - 7
    marks = torch.zeros(len(live), dtype=torch.bool)
    marks[leaving] = True
    gone = {live[i] for i in leaving}
    after = sorted((set(live) - gone) | set(arriving))
    value_at = dict(zip(live, values.tolist(), strict=True))
    state_at = dict(zip(live, state.tolist(), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "POSITIONS_PER_BLOCK", block)
        pointers, columns = build_index(torch.tensor(live), slices)
        assert LiveRows(shapes, pointers, columns).positions().tolist() == live
        moved = [(values, 0.0), (state, 0.25)]
        rebuild(slices, pointers, columns, marks, torch.tensor(arriving, dtype=torch.int64), moved, kernels)
        assert LiveRows(shapes, pointers, columns).positions().tolist() == after
        assert is_index(pointers, columns, slices)
        anew = build_index(torch.tensor(after), slices)
    assert torch.equal(pointers, anew[0]) and torch.equal(columns, anew[1])
    assert values.tolist() == [0.0 if p in arriving else value_at[p] for p in after]
    assert state.tolist() == [0.25 if p in arriving else state_at[p] for p in after]


def train(storage: str = "packed", steps: int = 8, **options) -> tuple[SparseHandle, list[list[set[int]]]]:
    """Two tables trained with an update every second step; also the rows scored for each update."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"user": nn.Embedding(60, 8), "item": nn.Embedding(90, 8)}).double()
    handle = sparsify(
        model, 0.2, groups="joint", include=["*"], storage=storage, update_interval=2, seed=1, **options
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    handle.attach(optimizer)
    draw, scored = torch.Generator().manual_seed(3), []
    for step in range(steps):
        users, items = torch.randint(60, (32,), generator=draw), torch.randint(90, (32, 2), generator=draw)
        scores = (model["user"](users)[:, None] * model["item"](items)).sum(-1)
        optimizer.zero_grad()
        nn.functional.softplus(scores[:, 1] - scores[:, 0]).sum().backward()
        sums = handle.groups[0].growth_scores
        if step % 2 == 1 and sums is not None and sums.where.rows is not None:
            before = handle.groups[0].live_positions().tolist()
            scored.append([set(r.tolist()) for r in sums.where.rows])
            optimizer.step()
            new = set(handle.groups[0].live_positions().tolist()) - set(before)
            assert all(p // 8 in scored[-1][0] if p < 480 else p // 8 - 60 in scored[-1][1] for p in new)
        else:
            optimizer.step()
        assert handle.live == handle.budget
    assert handle.explorer.updates == steps // 2
    return handle, scored


@pytest.mark.parametrize("grow", GROWTH_NAMES)
@pytest.mark.parametrize("growth_rows", [1.0, 0.3])
def test_the_size_of_blocks_changes_nothing(
    grow: str, growth_rows: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same topology and values whether everything is one block or in pieces."""
    whole, _ = train(grow=grow, growth_rows=growth_rows)
    for module, name in ((rows, "POSITIONS_PER_BLOCK"), (selection, "SCORES_PER_BLOCK")):
        monkeypatch.setattr(module, name, 37)
    monkeypatch.setattr(update, "SLOTS_PER_BLOCK", 50)
    pieces, _ = train(grow=grow, growth_rows=growth_rows)
    assert torch.equal(whole.groups[0].live_positions(), pieces.groups[0].live_positions())
    assert torch.equal(whole.groups[0].live_values(), pieces.groups[0].live_values())


@pytest.mark.parametrize("grow", GROWTH_NAMES)
def test_both_storages_sample_the_same_rows(grow: str) -> None:
    """With a share of the rows, packed and masked training follow one trajectory."""
    packed, masked = (train(storage, grow=grow, growth_rows=0.3) for storage in ("packed", "masked"))
    assert packed[1] == masked[1]
    assert torch.equal(packed[0].groups[0].live_positions(), masked[0].groups[0].live_positions())
    torch.testing.assert_close(packed[0].groups[0].live_values(), masked[0].groups[0].live_values())


def test_every_window_scores_its_share_of_other_rows() -> None:
    """18 of 60 and 27 of 90 rows, other ones each time; only they gain weights (checked in train)."""
    handle, scored = train(growth_rows=0.3)
    assert [[len(r) for r in sample] for sample in scored] == [[18, 27]] * 4
    assert len({frozenset(sample[1]) for sample in scored}) == 4
    assert handle.explorer.growth_bytes == 45 * (8 * 8 + 8) + 150 * 4  # scores, row numbers, their inverse


def test_growth_memory_limits_the_share() -> None:
    """The smaller of both."""
    _, scored = train(growth_rows=0.9, growth_memory=3_000)
    assert all(len(sample[0]) < 20 for sample in scored)


@pytest.mark.parametrize("storage", ["packed", "masked"])
@pytest.mark.parametrize("growth_rows", [1.0, 0.3])
@pytest.mark.parametrize("grow", GROWTH_NAMES)
def test_compiled_updates_are_those_of_plain_torch(grow: str, growth_rows: float, storage: str) -> None:
    """The same topology, values and exploration record; what an update writes counts as written."""
    loops, plain = (
        train(storage, grow=grow, growth_rows=growth_rows, kernels=kernels)[0] for kernels in ("auto", "torch")
    )
    ours, twin = loops.groups[0], plain.groups[0]
    assert torch.equal(ours.live_positions(), twin.live_positions())
    torch.testing.assert_close(ours.live_values(), twin.live_values())
    assert [p.record.count for p in loops.explorer.progress if p.record] == [
        p.record.count for p in plain.explorer.progress if p.record
    ]


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_what_an_update_moves_counts_as_written(kernels: str) -> None:
    """Version counters tell caches and autograd that values, state and index are others now."""
    slices = slices_of(["t"], [(3, 2)])
    pointers, columns = build_index(torch.tensor([0, 3]), slices)
    values, state = torch.ones(2), torch.ones(2)
    before = [t._version for t in (columns, values, state)]
    leaving = torch.tensor([True, False])
    rebuild(slices, pointers, columns, leaving, torch.tensor([5]), [(values, 0.0), (state, 0.0)], kernels)
    assert all(t._version > old for t, old in zip((columns, values, state), before, strict=True))
    assert values.tolist() == [1.0, 0.0]
