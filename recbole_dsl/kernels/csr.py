"""Products of a sparse matrix in compressed rows (CSR) with a dense one, and its transpose.

CSR: ``pointers`` (rows + 1,) and ``columns`` (n,) int32 or int64, ``values`` (n,); the entries of row r
are ``pointers[r]:pointers[r + 1]``. Every row of a product is summed in the order of its entries by a
single thread, so results do not depend on the number of threads.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import at_once, compiled, loop

SMALL_PRODUCT = 1 << 20
"""Multiplications below which threads cost more than they save."""


def product(
    pointers: Tensor, columns: Tensor, values: Tensor, dense: Tensor, skip_zeros: bool, kernels: str
) -> Tensor:
    """The sparse matrix times ``dense`` (columns × width, the type of ``values``): rows × width.

    Args:
        skip_zeros: leave out the rows of ``dense`` that are all zero, where that pays; asks for finite
            ``values``, as a product of zero and infinity is none.
        kernels: the setting ``dsl_kernels``.
    """
    dense = dense.contiguous()
    if not compiled(kernels, pointers, columns, values, dense):
        return as_csr(pointers, columns, values, dense.shape[0]) @ dense
    rows = pointers.numel() - 1
    out = dense.new_empty(rows, dense.shape[1])
    live = torch.empty(dense.shape[0] if skip_zeros else 0, dtype=torch.bool)
    if skip_zeros and 2 * _find_live_rows(dense, live) < dense.shape[0]:
        _in_parts(pointers, out, functools.partial(_multiply_live, pointers, columns, values, dense, live, out))
    else:
        _in_parts(pointers, out, functools.partial(_multiply, pointers, columns, values, dense, out))
    return out


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


def _in_parts(pointers: Tensor, out: Tensor, run: Callable[[int, int], Any]) -> None:
    """``run(first, last)`` on ranges of rows with equally many entries, one for every thread of torch."""
    rows, entries, threads = out.shape[0], int(pointers[-1]), torch.get_num_threads()
    if threads == 1 or entries * out.shape[1] < SMALL_PRODUCT:
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
def _multiply_live(
    pointers: Any, columns: Any, values: Any, dense: Any, live: Any, out: Any, first: int, last: int
) -> None:
    width = dense.shape[1]
    for row in range(first, last):
        total = out[row]
        total[:] = 0
        for entry in range(pointers[row], pointers[row + 1]):
            column = columns[entry]
            if live[column]:
                value, source = values[entry], dense[column]
                for k in range(width):
                    total[k] += value * source[k]


@loop
def _find_live_rows(dense: Any, live: Any) -> int:
    """Mark the rows that have any entry but zero, and count them."""
    found = 0
    for row in range(dense.shape[0]):
        live[row] = False
        for k in range(dense.shape[1]):
            if dense[row, k] != 0:
                live[row] = True
                found += 1
                break
    return found


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
