"""Exact search: every way of searching finds what scoring everything finds, ties by the lower number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_dsl import compiling
from recbole_dsl.serving import loops, search
from recbole_dsl.serving.encoders import ENCODERS, Graph, sum_of_rows
from recbole_dsl.serving.on_device import DeviceItems
from recbole_dsl.serving.search import DenseItems, SparseItems, top_of_panels
from recbole_dsl.serving.table import SparseTable, lengths_one, norms
from recbole_dsl.serving.top import best

needs_numba = pytest.mark.skipif(not compiling.numba_installed(), reason="needs numba")
relaxed = settings(max_examples=80, deadline=None)
Found = tuple[np.ndarray, np.ndarray]


def full(scores: np.ndarray, k: int, excluded: np.ndarray) -> Found:
    """The naive answer: sort everything."""
    numbers = [n for n in range(len(scores)) if n not in set(excluded.tolist())]
    numbers.sort(key=lambda n: (-scores[n], n))
    chosen = np.array(numbers[:k], np.int64)
    return chosen, scores[chosen]


table_of = SparseTable.of_dense


@st.composite
def cases(draw: Any) -> tuple[np.ndarray, np.ndarray, int, list[np.ndarray]]:
    """Items and queries of small whole numbers, so that sums are exact and ties many; exclusions."""
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    items, width, count = draw(st.integers(1, 700)), draw(st.integers(1, 20)), draw(st.integers(1, 12))
    density = draw(st.sampled_from([0.05, 0.3, 1.0]))

    def whole(rows: int) -> np.ndarray:
        mask = random.random((rows, width)) < density
        return (random.integers(-2, 3, (rows, width)) * mask).astype(np.float32)

    excluded = [
        np.flatnonzero(random.random(items) < draw(st.sampled_from([0, 0.1, 0.9, 1]))) for _ in range(count)
    ]
    return whole(items), whole(count), draw(st.integers(1, 40)), excluded


Way = Callable[[np.ndarray, np.ndarray, int, list[np.ndarray]], list[Found]]
WAYS: dict[str, Way] = {
    "inverted index": lambda items, queries, k, out: SparseItems(table_of(items)).columns.top(
        table_of(queries), k, out
    ),
    "sparse items, sparse queries": lambda items, queries, k, out: SparseItems(table_of(items)).top(
        table_of(queries), k, out
    ),
    "sparse items, dense queries": lambda items, queries, k, out: SparseItems(table_of(items)).top(
        queries, k, out
    ),
    "panels of sparse items": lambda items, queries, k, out: top_of_panels(table_of(items), queries, k, out),
    "dense items": lambda items, queries, k, out: DenseItems(items).top(queries, k, out),
    "dense items, sparse queries": lambda items, queries, k, out: DenseItems(items).top(
        table_of(queries), k, out
    ),
    "dense items, one by one": lambda items, queries, k, out: [
        DenseItems(items).top(queries[q : q + 1], k, out[q : q + 1])[0] for q in range(len(queries))
    ],
    "on a device": lambda items, queries, k, out: DeviceItems(items, "cpu").top(queries, k, out),
    "sparse items on a device": lambda items, queries, k, out: DeviceItems(table_of(items), "cpu").top(
        table_of(queries), k, out
    ),
}


@pytest.mark.parametrize("numba", [False, pytest.param(True, marks=needs_numba)])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_exact(way: str, numba: bool) -> None:
    """Items and scores, bit for bit, over several blocks and panels."""
    plain = loops.available, search.BLOCK, search._PANEL

    @relaxed
    @given(cases())
    def check(case: tuple[np.ndarray, np.ndarray, int, list[np.ndarray]]) -> None:
        items, queries, k, excluded = case
        found = WAYS[way](items, queries, k, excluded)
        assert len(found) == len(queries)
        for q, (numbers, scores) in enumerate(found):
            expected = full(items @ queries[q], k, excluded[q])
            assert np.array_equal(numbers, expected[0]) and np.array_equal(scores, expected[1])

    try:
        search.BLOCK, search._PANEL = 128, 64
        if not numba:
            loops.available = lambda: False
        check()
    finally:
        loops.available, search.BLOCK, search._PANEL = plain


@relaxed
@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, -np.inf, 3.5]), max_size=4000), st.integers(1, 50))
def test_best_of_scores(scores: list[float], k: int) -> None:
    """Minus infinity is nobody's."""
    array = np.array(scores, np.float32)
    numbers, found = best(array, k)
    expected = full(array, k, np.flatnonzero(array == -np.inf))
    assert np.array_equal(numbers, expected[0]) and np.array_equal(found, expected[1])


def test_best_of_many() -> None:
    """Where blocks give a bound."""
    scores = np.random.default_rng(0).integers(0, 1000, 100_000).astype(np.float32)
    numbers, found = best(scores, 30)
    order = np.lexsort((np.arange(len(scores)), -scores))[:30]
    assert np.array_equal(numbers, order) and np.array_equal(found, scores[order])


def test_bytes_of_the_layouts() -> None:
    """At density 0.1 and 64 columns: rows at most 0.15 of the dense table, the inverted index 0.16."""
    draw = np.random.default_rng(0)
    matrix = np.where(draw.random((40_000, 64)) < 0.1, draw.standard_normal((40_000, 64)), 0).astype(np.float32)
    items = SparseItems(table_of(matrix))
    assert items.nbytes <= 0.15 * matrix.nbytes
    assert items.columns.nbytes <= 0.16 * matrix.nbytes
    assert items.nbytes == items.table.nbytes + items.columns.nbytes


def test_no_queries() -> None:
    """No answers."""
    items = table_of(np.eye(4, dtype=np.float32))
    assert SparseItems(items).top(np.empty((0, 4), np.float32), 3, []) == []
    assert DenseItems(items.dense()).top(np.empty((0, 4), np.float32), 3, []) == []


# --- vectors of models -----------------------------------------------------------------------------


@relaxed
@given(st.integers(1, 30), st.integers(1, 20), st.integers(0, 200), st.integers(0, 99))
def test_sums_over_a_graph(users: int, items: int, edges: int, seed: int) -> None:
    """As the product with the dense matrix of the graph, both ways; users without items sum to zero."""
    draw = np.random.default_rng(seed)
    adjacency = np.zeros((users, items), np.float32)
    adjacency[draw.integers(0, users, edges), draw.integers(0, items, edges)] = 1
    graph = Graph.of_counts(adjacency.sum(1).astype(int), np.nonzero(adjacency)[1], items)
    matrix = draw.standard_normal((items, 3)).astype(np.float32)
    assert np.allclose(sum_of_rows(graph, matrix), adjacency @ matrix, atol=1e-4)
    back = draw.standard_normal((users, 2)).astype(np.float32)
    weights = draw.standard_normal(int(adjacency.sum())).astype(np.float32)
    assert np.allclose(sum_of_rows(graph.transposed(), back), adjacency.T @ back, atol=1e-4)
    weighted = adjacency.copy()
    weighted[np.nonzero(adjacency)] = weights
    assert np.allclose(sum_of_rows(graph, matrix, weights), weighted @ matrix, atol=1e-4)


def test_light_graph_by_hand() -> None:
    """Two users, two items, one layer: (E + D^-½ A D^-½ E) / 2."""
    graph = Graph.of_counts(np.array([2, 1]), np.array([0, 1, 1]), 2)
    tensors = {"users": np.array([[1.0], [2.0]], np.float32), "items": np.array([[4.0], [8.0]], np.float32)}
    users, items = ENCODERS["light_graph"](tensors, {"graph": graph}, {"layers": 1})
    root = 2**-0.5
    assert np.allclose(users.ravel(), [(1 + root * 4 + 0.5 * 8) / 2, (2 + root * 8) / 2])  # type: ignore[union-attr]
    assert np.allclose(items.ravel(), [(4 + root * 1) / 2, (8 + 0.5 * 1 + root * 2) / 2])  # type: ignore[union-attr]


def test_lengths() -> None:
    """Sparse and dense rows alike; a row of zeros stays one."""
    matrix = np.array([[3, 0, 4], [0, 0, 0], [0, 2, 0]], np.float32)
    assert norms(table_of(matrix)).tolist() == norms(matrix).tolist() == [5, 0, 2]
    unit = lengths_one(table_of(matrix))
    assert isinstance(unit, SparseTable)
    assert np.allclose(unit.dense(), lengths_one(matrix)) and np.allclose(norms(unit), [1, 0, 1])


def test_rows_and_pieces_of_a_table() -> None:
    """Any rows in any order, repeated too."""
    matrix = np.random.default_rng(0).integers(-1, 2, (9, 5)).astype(np.float32)
    table = table_of(matrix)
    numbers = np.array([8, 0, 0, 3])
    assert np.array_equal(table.rows(numbers).dense(), matrix[numbers])
    assert np.array_equal(table.dense(2, 5), matrix[2:5]) and np.array_equal(table.dense(7, 99), matrix[7:])
    assert np.array_equal(table.scaled(by_row=np.arange(9.0)).dense(), matrix * np.arange(9.0)[:, None])
    assert np.array_equal(table.scaled(by_column=np.arange(5.0)).dense(), matrix * np.arange(5.0))
