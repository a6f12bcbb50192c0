"""Loops over some columns of packed rows (CSR), and over their products with a sparse matrix.

``first`` is where a tensor's rows start among those of its group, and ``offset`` the row of the sparse matrix
that belongs to the tensor's first one. Columns ``low`` … ``high`` - 1 are those of a matrix whose first column
stands for ``origin``. Column ids ascend in every row.
"""

from __future__ import annotations

from typing import Any

from . import loop


@loop
def read_columns(
    values: Any, pointers: Any, columns: Any, first: int, offset: int, low: int, high: int,
    start: int, stop: int, out: Any,
) -> None:  # fmt: skip
    """Write columns of the rows ``start`` … ``stop`` - 1 into ``out`` (rows × (high - low)), which is zero."""
    for row in range(start, stop):
        for k in range(pointers[first + row], pointers[first + row + 1]):
            column = columns[k]
            if column >= high:
                break
            if column >= low:
                out[offset + row, column - low] = values[k]


@loop
def add_columns(
    total: Any, pointers: Any, columns: Any, first: int, offset: int, low: int, high: int,
    start: int, stop: int, gradient: Any,
) -> None:  # fmt: skip
    """Add ``gradient`` (rows × (high - low)) to ``total``, where weights of some rows live."""
    for row in range(start, stop):
        for k in range(pointers[first + row], pointers[first + row + 1]):
            column = columns[k]
            if column >= high:
                break
            if column >= low:
                total[k] += gradient[offset + row, column - low]


@loop
def spread_columns(
    values: Any, pointers: Any, columns: Any, first: int, rows: int, transpose: Any, targets: Any, weights: Any,
    offset: int, origin: int, low: int, high: int, out: Any,
) -> None:  # fmt: skip
    """Add a matrix times the tensor's columns to ``out`` (matrix's rows × columns).

    ``transpose``, ``targets`` and ``weights``: pointers, columns and values of the matrix's transpose.
    """
    for row in range(rows):
        for k in range(pointers[first + row], pointers[first + row + 1]):
            column = columns[k]
            if column >= high:
                break
            if column >= low:
                for entry in range(transpose[offset + row], transpose[offset + row + 1]):
                    out[targets[entry], column - origin] += values[k] * weights[entry]


@loop
def gather_columns(
    total: Any, pointers: Any, columns: Any, first: int, offset: int, low: int, high: int,
    start: int, stop: int, matrix: Any, sources: Any, weights: Any, gradient: Any,
) -> None:  # fmt: skip
    """Add a matrix times ``gradient`` (matrix's columns × (high - low)) to ``total``, where weights live.

    ``matrix``, ``sources`` and ``weights``: its pointers, columns and values. Rows ``start`` … ``stop`` - 1.
    """
    for row in range(start, stop):
        for k in range(pointers[first + row], pointers[first + row + 1]):
            column = columns[k]
            if column >= high:
                break
            if column >= low:
                share = total[k]
                for entry in range(matrix[offset + row], matrix[offset + row + 1]):
                    share += weights[entry] * gradient[sources[entry], column - low]
                total[k] = share
