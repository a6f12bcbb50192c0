"""Products of a sparse matrix in compressed rows (CSR) with a dense one, and its transpose.

CSR: ``pointers`` (rows + 1,) and ``columns`` (n,) int32 or int64, ``values`` (n,); the entries of row r
are ``pointers[r]:pointers[r + 1]``. Every number of a product is summed by a single thread, in an order that
does not depend on how many there are.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import at_once, compiled, in_parallel, loop

CSR = tuple[Tensor, Tensor, Tensor]
"""Pointers, columns and values."""

SMALL_PRODUCT = 1 << 20
"""Multiplications below which threads cost more than they save."""

FEW = 2
"""How many times fewer entries have to be looked at for it to pay that sums lie anywhere in memory."""


def product(matrix: CSR, transpose: CSR | tuple[()], dense: Tensor, kernels: str) -> Tensor:
    """The sparse matrix times ``dense`` (columns × width, the type of its values): rows × width.

    Args:
        transpose: of the matrix, with which ``dense`` costs only what its rows cost that are not all zero,
            where these are few; empty if it is not known, or if a value is not finite, as a product of zero
            and infinity is none.
        kernels: the setting ``dsl_kernels``.
    """
    pointers, dense = matrix[0], dense.contiguous()
    if not compiled(kernels, *matrix, *transpose, dense):
        return as_csr(*matrix, dense.shape[0]) @ dense
    if transpose:
        live = torch.empty(dense.shape[0], dtype=torch.bool)
        _find_live_rows(dense, live)
        entries = _entries_of(live, transpose[0])
        if entries * FEW < int(pointers[-1]):
            out = dense.new_zeros(pointers.numel() - 1, dense.shape[1])
            run = functools.partial(_spread, *transpose, dense, live, out)
            in_parallel(run, out.shape[1], entries * out.shape[1])
            return out
    out = dense.new_empty(pointers.numel() - 1, dense.shape[1])
    _in_rows(functools.partial(_multiply, *matrix, dense, out), pointers, dense.shape[1])
    return out


def _entries_of(rows: Tensor, pointers: Tensor) -> int:
    """How many entries the marked ``rows`` (bool) have."""
    return int(pointers.diff().mul_(rows).sum())


def transposed(
    pointers: Tensor, columns: Tensor, values: Tensor, width: int, kernels: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The transpose of a matrix with ``width`` columns, again in CSR, its columns ascending in every row."""
    counts = torch.bincount(columns, minlength=width)
    out_pointers = pointers_of(counts, pointers.dtype)
    if compiled(kernels, pointers, columns, values):
        out_columns, out_values = torch.empty_like(columns), torch.empty_like(values)
        _transpose(pointers, columns, values, out_pointers[:-1].clone(), out_columns, out_values)
        return out_pointers, out_columns, out_values
    rows = torch.repeat_interleave(pointers.diff()).to(columns.dtype)
    order = torch.sort(columns, stable=True).indices
    return out_pointers, rows[order], values[order]


def pointers_of(counts: Tensor, dtype: torch.dtype) -> Tensor:
    """Row pointers of rows with so many entries."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(dtype)


def as_csr(pointers: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    """torch's own CSR tensor over the same memory, without the notice that it is in beta state."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        shape = (pointers.numel() - 1, width)
        return torch.sparse_csr_tensor(pointers, columns, values, shape, check_invariants=False)


def _in_rows(run: Callable[[int, int], Any], pointers: Tensor, width: int) -> None:
    """``run(first, last)`` on ranges of rows with equally many entries, one for every thread of torch."""
    rows, entries, threads = pointers.numel() - 1, int(pointers[-1]), torch.get_num_threads()
    if threads == 1 or entries * width < SMALL_PRODUCT:
        run(0, rows)
        return
    shares = torch.arange(1, threads, dtype=torch.float64) * (entries / threads)
    bounds = [0, *torch.searchsorted(pointers, shares.to(pointers.dtype)).tolist(), rows]
    at_once(run, bounds)


@loop(reorder=True)
def _multiply(pointers: Any, columns: Any, values: Any, dense: Any, out: Any, first: int, last: int) -> None:
    """Four entries at a time: their rows of ``dense`` lie anywhere, and are waited for together."""
    width = dense.shape[1]
    for row in range(first, last):
        total = np.zeros(width, dense.dtype)
        entry, end = pointers[row], pointers[row + 1]
        while entry + 3 < end:
            a, b, c, d = values[entry], values[entry + 1], values[entry + 2], values[entry + 3]
            one, two = dense[columns[entry]], dense[columns[entry + 1]]
            three, four = dense[columns[entry + 2]], dense[columns[entry + 3]]
            for k in range(width):
                total[k] += a * one[k] + b * two[k] + c * three[k] + d * four[k]
            entry += 4
        while entry < end:
            a, one = values[entry], dense[columns[entry]]
            for k in range(width):
                total[k] += a * one[k]
            entry += 1
        out[row] = total


@loop
def _spread(
    pointers: Any, columns: Any, values: Any, dense: Any, live: Any, out: Any, first: int, last: int
) -> None:
    """Add what the ``live`` rows of ``dense`` (rows × width) give to the rows of ``out`` (columns × width).

    That is the product with the transpose, in columns ``first`` … ``last`` - 1 of both.
    """
    for row in range(live.size):
        if not live[row]:
            continue
        source = dense[row, first:last]
        for entry in range(pointers[row], pointers[row + 1]):
            value, target = values[entry], out[columns[entry], first:last]
            for k in range(last - first):
                target[k] += value * source[k]


@loop
def _find_live_rows(dense: Any, live: Any) -> None:
    """Mark the rows that have any entry but zero."""
    for row in range(dense.shape[0]):
        found = False
        for k in range(dense.shape[1]):  # to the end of it, since that takes vector instructions
            found |= dense[row, k] != 0
        live[row] = found


@loop
def _transpose(
    pointers: Any, columns: Any, values: Any, places: Any, out_columns: Any, out_values: Any
) -> None:
    """``places`` (width,): where the next entry of a column goes; it is used up."""
    for row in range(pointers.shape[0] - 1):
        for entry in range(pointers[row], pointers[row + 1]):
            column = columns[entry]
            place = places[column]
            out_columns[place] = row
            out_values[place] = values[entry]
            places[column] = place + 1
