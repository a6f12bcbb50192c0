"""Loops over the live weights of packed rows (CSR: values, row pointers, column ids).

``first`` is where a tensor's rows start among those of its group; ids count from there.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from . import loop

AHEAD: Final = 32
"""Rows whose memory is asked for together, before any of them is worked on.

Rows lie anywhere in memory, and a row waits first for its pointers and then for its values. Asked for
one by one, a processor spends most of its time waiting. What is read ahead is summed and returned, or
the compiler would leave the reading out.
"""


@loop
def read_rows(values: Any, pointers: Any, columns: Any, first: int, last: int, ids: Any, out: Any) -> int:
    """Write the rows ``ids`` (n,) into ``out`` (n × columns), whatever it holds.

    Returns a negative number, or the place in ``ids`` of a row that is not below ``last`` - ``first``.
    """
    starts: Any = np.empty(AHEAD, np.int64)
    stops: Any = np.empty(AHEAD, np.int64)
    touched = values[:1].sum()
    for chunk in range(0, ids.size, AHEAD):
        many = min(AHEAD, ids.size - chunk)
        for i in range(many):
            row = ids[chunk + i]
            if row < 0 or row >= last - first:
                return chunk + i
            starts[i], stops[i] = pointers[first + row], pointers[first + row + 1]
        for i in range(many):
            if starts[i] < stops[i]:
                touched += values[starts[i]] + values[stops[i] - 1] + columns[starts[i]]
        for i in range(many):
            for c in range(out.shape[1]):
                out[chunk + i, c] = 0
            for k in range(starts[i], stops[i]):
                out[chunk + i, columns[k]] = values[k]
    return -1 if touched == touched else -2


@loop
def add_rows(
    total: Any, pointers: Any, columns: Any, first: int, ids: Any, gradient: Any, skipped: int, spans: Any
) -> float:
    """Add ``gradient`` (n × columns) of the rows ``ids`` to ``total`` (live weights).

    ``skipped``: a row whose gradient is dropped, -1 for none. Repeated rows add up in their order.
    ``spans``: (2, n) int64, where each row starts in ``total`` and where it ends, to be told. What it returns
    means nothing.
    """
    starts, stops = spans[0], spans[1]
    touched = total[:1].sum()
    for chunk in range(0, ids.size, AHEAD):
        end = min(chunk + AHEAD, ids.size)
        for i in range(chunk, end):
            row = ids[i]
            starts[i], stops[i] = pointers[first + row], pointers[first + row + 1]
            if row == skipped:
                stops[i] = starts[i]
        for i in range(chunk, end):
            if starts[i] < stops[i]:
                touched += total[starts[i]] + total[stops[i] - 1] + columns[starts[i]]
        for i in range(chunk, end):
            for k in range(starts[i], stops[i]):
                total[k] += gradient[i, columns[k]]
    return touched


@loop
def clear_spans(total: Any, spans: Any) -> None:
    """Make ``total`` zero from every start to its end, ``spans`` (2, n) int64."""
    for i in range(spans.shape[1]):
        for k in range(spans[0, i], spans[1, i]):
            total[k] = 0


@loop
def read_table(values: Any, pointers: Any, columns: Any, first: int, start: int, stop: int, out: Any) -> None:
    """Write the rows ``start`` … ``stop`` - 1 of a tensor into the same rows of ``out``."""
    for row in range(start, stop):
        for c in range(out.shape[1]):
            out[row, c] = 0
        for k in range(pointers[first + row], pointers[first + row + 1]):
            out[row, columns[k]] = values[k]


@loop
def add_table(
    total: Any, pointers: Any, columns: Any, first: int, start: int, stop: int, gradient: Any
) -> None:
    """Add the rows ``start`` … ``stop`` - 1 of ``gradient`` (rows × columns) to ``total``."""
    for row in range(start, stop):
        for k in range(pointers[first + row], pointers[first + row + 1]):
            total[k] += gradient[row, columns[k]]
