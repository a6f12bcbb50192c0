"""Exact search of the items with the largest inner products.

Sparse items are kept in compressed rows, which similar items, candidates and batches read, and, once a sparse
query has been asked, by column as well: the *inverted index*, of which only the columns that live in the
query are read. It is cut into blocks of items small enough that their scores stay in a cache and their numbers
fit in 16 bits. Which way a query goes depends on sizes alone. Loops are numba's where it is installed
(``loops.py``), else numpy's.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from . import loops
from .table import Matrix, SparseTable, as_dense, dense_rows
from .top import best

Found = tuple[np.ndarray, np.ndarray]
"""Numbers of items and their scores, the best first, ties by number."""

BLOCK: Final = 1 << 15
"""Items of a block of the inverted index."""

_PANEL: Final = 1 << 12
"""Items that are multiplied with a batch of queries at once."""

BATCH: Final = 8
"""Queries from which on dense items are multiplied in panels, whose scores stay in a cache."""


class Items(Protocol):
    """What can be searched."""

    def top(self, queries: SparseTable | Matrix, k: int, excluded: Sequence[np.ndarray]) -> list[Found]:
        """The best ``k`` items of every query.

        Args:
            queries: a row for each.
            excluded: for each query the numbers of items that are left out, ascending.
        """

    def scores(self, queries: Matrix, numbers: np.ndarray) -> np.ndarray:
        """Inner products of dense queries with some items, shape (queries, numbers)."""

    def all_scores(self, query: Matrix) -> np.ndarray:
        """Inner products of one dense query with all items."""


@dataclass(frozen=True)
class Columns:
    """An inverted index: for every block of items and every column the items that are live in it.

    ``starts``: blocks × columns + 1. ``ids``: numbers within the block, uint16, ascending in a column.
    """

    starts: np.ndarray
    ids: np.ndarray
    values: np.ndarray
    items: int
    width: int

    @classmethod
    def of(cls, table: SparseTable) -> Columns:
        """The index of a table."""
        items, width = table.shape
        blocks = -(-items // BLOCK)
        starts = np.zeros(blocks * width + 1, np.int64)
        ids, values = np.empty(len(table.values), np.uint16), np.empty(len(table.values), np.float32)
        for number in range(blocks):
            first, last = number * BLOCK, min(items, (number + 1) * BLOCK)
            here = slice(table.pointers[first], table.pointers[last])
            columns = table.columns[here]
            order = np.argsort(columns, kind="stable")
            rows = np.repeat(np.arange(last - first, dtype=np.uint16), table.counts[first:last])
            ids[here], values[here] = rows[order], table.values[here][order]
            counts = np.bincount(columns, minlength=width)
            starts[number * width + 1 : (number + 1) * width + 1] = here.start + np.cumsum(counts)
        return cls(starts.astype(np.int32) if len(ids) < 2**31 else starts, ids, values, items, width)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.starts.nbytes + self.ids.nbytes + self.values.nbytes

    def top(self, queries: SparseTable, k: int, excluded: Sequence[np.ndarray]) -> list[Found]:
        """The best items of sparse queries."""
        if not loops.available():
            return [self._one(*queries.row(q), k, excluded[q]) for q in range(queries.shape[0])]
        heaps = _Heaps(excluded, k)
        buffer = np.empty(min(BLOCK, self.items), np.float32)
        loops.search_columns(
            queries.pointers, queries.columns.astype(np.int64), queries.values, self.starts, self.ids,
            self.values, self.items, BLOCK, self.width, heaps.excluded, heaps.places, buffer, heaps.scores,
            heaps.numbers, heaps.filled,
        )  # fmt: skip
        return heaps.found()

    def _one(self, columns: np.ndarray, weights: np.ndarray, k: int, excluded: np.ndarray) -> Found:
        scores = np.zeros(self.items, np.float32)
        for block in range(-(-self.items // BLOCK)):
            part = scores[block * BLOCK : (block + 1) * BLOCK]
            for column, weight in zip(columns.astype(np.int64) + block * self.width, weights, strict=True):
                here = slice(self.starts[column], self.starts[column + 1])
                part[self.ids[here]] += weight * self.values[here]
        scores[excluded] = -np.inf
        return best(scores, k)


class _Heaps:
    """The best items so far of several queries, as the compiled loops keep them."""

    def __init__(self, excluded: Sequence[np.ndarray], k: int) -> None:
        ends = np.cumsum([len(part) for part in excluded])
        self.excluded = np.concatenate(excluded).astype(np.int64)
        self.places = np.concatenate([[0], ends[:-1], ends]).astype(np.int64)
        self.scores = np.empty((len(excluded), k), np.float32)
        self.numbers = np.empty((len(excluded), k), np.int64)
        self.filled = np.zeros(len(excluded), np.int64)

    def found(self) -> list[Found]:
        """The best of each, in order."""
        return [
            _ordered(self.scores[q, :filled], self.numbers[q, :filled]) for q, filled in enumerate(self.filled)
        ]


def _ordered(scores: np.ndarray, numbers: np.ndarray) -> Found:
    order = np.lexsort((numbers, -scores))
    return numbers[order], scores[order]


def _sums(pointers: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Sums of the products of each row, float32."""
    result = np.zeros(len(pointers) - 1, np.float32)
    filled = np.flatnonzero(np.diff(pointers))
    if len(filled):
        result[filled] = np.add.reduceat(products, pointers[filled])
    return result


def by_panels(live: float, per_item: float, queries: int) -> bool:
    """Whether products of dense panels take less time than the inverted index.

    The figures are nanoseconds per item of ``benchmarks/serving.py``, which has both for every case.

    Args:
        live: share of a query's columns that live. per_item: live weights of an item.
        queries: how many there are at once; a panel is made dense once for all of them.
    """
    inverted = 0.3 + 1.2 * live * per_item
    return 3.2 + 40 / queries < inverted


class SparseItems:
    """A sparse table of items."""

    def __init__(self, table: SparseTable) -> None:
        self.table = table
        self._building = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Of the rows, and of the inverted index once it has been built."""
        return self.table.nbytes + (self.columns.nbytes if "columns" in self.__dict__ else 0)

    @functools.cached_property
    def columns(self) -> Columns:
        """The inverted index."""
        with self._building:
            return self.__dict__.get("columns") or Columns.of(self.table)

    def top(self, queries: SparseTable | Matrix, k: int, excluded: Sequence[np.ndarray]) -> list[Found]:
        """See :class:`Items`."""
        if not len(excluded):
            return []
        if isinstance(queries, SparseTable):
            live = len(queries.values) / len(excluded)
        else:
            live = float(queries.shape[1])
        if by_panels(
            live / queries.shape[1], len(self.table.values) / max(1, self.table.shape[0]), len(excluded)
        ):
            return top_of_panels(self.table, as_dense(queries), k, excluded)
        table = queries if isinstance(queries, SparseTable) else SparseTable.of_dense(queries)
        return self.columns.top(table, k, excluded)

    def scores(self, queries: Matrix, numbers: np.ndarray) -> np.ndarray:
        """See :class:`Items`."""
        result = np.empty((len(queries), len(numbers)), np.float32)
        for first in range(0, len(numbers), _PANEL):
            here = slice(first, first + _PANEL)
            result[:, here] = queries @ dense_rows(self.table, numbers[here]).T
        return result

    def all_scores(self, query: Matrix) -> np.ndarray:
        """See :class:`Items`."""
        table, result = self.table, np.empty(self.table.shape[0], np.float32)
        for first in range(0, len(result), BLOCK):
            pointers = table.pointers[first : first + BLOCK + 1]
            here = slice(pointers[0], pointers[-1])
            result[first : first + BLOCK] = _sums(
                pointers - pointers[0], query[table.columns[here]] * table.values[here]
            )
        return result


class DenseItems:
    """A dense matrix of items."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = np.ascontiguousarray(matrix)

    def top(self, queries: SparseTable | Matrix, k: int, excluded: Sequence[np.ndarray]) -> list[Found]:
        """See :class:`Items`."""
        dense = as_dense(queries)
        if len(dense) >= BATCH:
            return top_of_panels(self.matrix, dense, k, excluded)
        return [self._one(query, k, left_out) for query, left_out in zip(dense, excluded, strict=True)]

    def _one(self, query: Matrix, k: int, excluded: np.ndarray) -> Found:
        if not loops.available():
            scores = self.matrix @ query
            scores[excluded] = -np.inf
            return best(scores, k)
        heap = _Heaps([excluded], k)
        loops.search_dense(
            self.matrix, np.ascontiguousarray(query), heap.excluded, heap.places, np.empty(_PANEL, np.float32),
            heap.scores, heap.numbers, heap.filled,
        )  # fmt: skip
        return heap.found()[0]

    def scores(self, queries: Matrix, numbers: np.ndarray) -> np.ndarray:
        """See :class:`Items`."""
        return queries @ self.matrix[numbers].T

    def all_scores(self, query: Matrix) -> np.ndarray:
        """See :class:`Items`."""
        return self.matrix @ query


def items_of(rows: SparseTable | Matrix) -> SparseItems | DenseItems:
    """What searches vectors of items."""
    return SparseItems(rows) if isinstance(rows, SparseTable) else DenseItems(rows)


def top_of_panels(
    items: SparseTable | Matrix, queries: Matrix, k: int, excluded: Sequence[np.ndarray]
) -> list[Found]:
    """The best items of many dense queries: products with panels of items, and the best of each panel."""
    queries = np.ascontiguousarray(queries)
    heaps, compiled = _Heaps(excluded, k), loops.available()
    for first in range(0, items.shape[0], _PANEL):
        block = queries @ as_dense(items, first, first + _PANEL).T
        if compiled:
            loops.take_block(
                block, first, heaps.excluded, heaps.places, heaps.scores, heaps.numbers, heaps.filled
            )
        else:
            _take_block(block, first, excluded, heaps)
    return heaps.found()


def _take_block(block: Matrix, first: int, excluded: Sequence[np.ndarray], heaps: _Heaps) -> None:
    """The best of what there was and of a block, for each query."""
    k = heaps.scores.shape[1]
    for q, row in enumerate(block):
        numbers, scores, had = heaps.numbers[q], heaps.scores[q], heaps.filled[q]
        low, high = (int(np.searchsorted(excluded[q], bound)) for bound in (first, first + len(row)))
        row[excluded[q][low:high] - first] = -np.inf
        better = np.flatnonzero(row > (scores[:had].min() if had == k else -np.inf))
        if not len(better):
            continue
        found, among = best(row[better], k)
        all_numbers = np.concatenate([numbers[:had], better[found] + first])
        all_scores = np.concatenate([scores[:had], among])
        order = np.lexsort((all_numbers, -all_scores))[:k]
        heaps.filled[q] = len(order)
        numbers[: len(order)], scores[: len(order)] = all_numbers[order], all_scores[order]
