"""Tables whose live weights are the only ones that exist, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Matrix = np.ndarray
"""Dense, float32."""


def smallest_unsigned(largest: int) -> np.dtype:
    """The smallest unsigned integer type that holds ``largest``."""
    return np.min_scalar_type(max(0, int(largest)))


def pointers_of(counts: np.ndarray) -> np.ndarray:
    """Where each row starts, and where the last one ends: one more than ``counts``, int32 while they fit."""
    total = int(counts.sum(dtype=np.int64))
    pointers = np.zeros(len(counts) + 1, np.int32 if total < 2**31 else np.int64)
    np.cumsum(counts, out=pointers[1:])
    return pointers


@dataclass(frozen=True)
class SparseTable:
    """A matrix in compressed rows.

    ``values``: float32, row by row. ``columns``: theirs, ascending within a row, of an unsigned type.
    ``pointers``: where each row starts, one more than there are rows. ``width``: columns.
    """

    values: np.ndarray
    columns: np.ndarray
    pointers: np.ndarray
    width: int

    @classmethod
    def of_dense(cls, matrix: Matrix) -> SparseTable:
        """A matrix without its zeros."""
        rows, columns = np.nonzero(matrix)
        counts = np.bincount(rows, minlength=len(matrix))
        narrow = columns.astype(smallest_unsigned(matrix.shape[1] - 1))
        return cls(matrix[rows, columns], narrow, pointers_of(counts), matrix.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.pointers) - 1, self.width

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.values.nbytes + self.columns.nbytes + self.pointers.nbytes

    @property
    def counts(self) -> np.ndarray:
        """Live weights of each row."""
        return np.diff(self.pointers)

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Columns and values of a row."""
        here = slice(self.pointers[number], self.pointers[number + 1])
        return self.columns[here], self.values[here]

    def row_numbers(self) -> np.ndarray:
        """The row of every live weight, int64."""
        return np.repeat(np.arange(len(self.pointers) - 1), self.counts)

    def rows(self, numbers: np.ndarray) -> SparseTable:
        """A table of some rows, in the order asked for."""
        counts = self.pointers[numbers + 1] - self.pointers[numbers]
        pointers = pointers_of(counts)
        places = np.arange(pointers[-1]) + np.repeat(self.pointers[numbers] - pointers[:-1], counts)
        return SparseTable(self.values[places], self.columns[places], pointers, self.width)

    def dense(self, start: int = 0, stop: int | None = None) -> Matrix:
        """Rows ``start`` … ``stop`` - 1 with their zeros."""
        pointers = self.pointers[start : None if stop is None else min(stop, self.shape[0]) + 1]
        here = slice(pointers[0], pointers[-1])
        matrix = np.zeros((len(pointers) - 1, self.width), np.float32)
        places = np.repeat(np.arange(len(pointers) - 1) * self.width, np.diff(pointers))
        matrix.reshape(-1)[places + self.columns[here]] = self.values[here]
        return matrix

    def scaled(self, by_row: np.ndarray | None = None, by_column: np.ndarray | None = None) -> SparseTable:
        """Rows and columns times a number each."""
        values = self.values
        if by_row is not None:
            values = values * np.repeat(by_row.astype(np.float32), self.counts)
        if by_column is not None:
            values = values * by_column.astype(np.float32)[self.columns]
        return SparseTable(values, self.columns, self.pointers, self.width)


def is_table(columns: np.ndarray, counts: np.ndarray, width: int) -> bool:
    """Whether columns are within ``width`` and ascend in each row, and counts add up to their number."""
    if int(counts.sum(dtype=np.int64)) != len(columns):
        return False
    if len(columns) == 0:
        return True
    ascends = columns[1:] > columns[:-1]
    starts = pointers_of(counts)[1:-1]
    ascends[starts[(starts > 0) & (starts < len(columns))] - 1] = True
    return bool(ascends.all()) and int(columns.max()) < width


def norms(rows: SparseTable | Matrix) -> np.ndarray:
    """The Euclidean length of each row, float32."""
    if isinstance(rows, SparseTable):
        squares = np.bincount(rows.row_numbers(), np.square(rows.values, dtype=np.float64), rows.shape[0])
        return np.sqrt(squares).astype(np.float32)
    return np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64)).astype(np.float32)


def lengths_one(rows: SparseTable | Matrix) -> SparseTable | Matrix:
    """Rows divided by their lengths, as torch's ``normalize`` does: by at least 1e-12."""
    factors = 1 / np.maximum(norms(rows), np.float32(1e-12))
    return rows.scaled(by_row=factors) if isinstance(rows, SparseTable) else rows * factors[:, None]


def some_rows(rows: SparseTable | Matrix, numbers: np.ndarray) -> SparseTable | Matrix:
    """Some rows, in the order asked for."""
    return rows.rows(numbers) if isinstance(rows, SparseTable) else rows[numbers]


def as_dense(rows: SparseTable | Matrix, start: int = 0, stop: int | None = None) -> Matrix:
    """Rows ``start`` … ``stop`` - 1 with their zeros."""
    return rows.dense(start, stop) if isinstance(rows, SparseTable) else rows[start:stop]


def dense_rows(rows: SparseTable | Matrix, numbers: np.ndarray) -> Matrix:
    """Some rows with their zeros."""
    return as_dense(some_rows(rows, numbers))


def sparse_bytes(live: int, shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes in a file: of ``live`` values of ``itemsize`` bytes, their columns, and the rows' counts."""
    rows, width = shape
    return live * (itemsize + smallest_unsigned(width - 1).itemsize) + rows * smallest_unsigned(width).itemsize
