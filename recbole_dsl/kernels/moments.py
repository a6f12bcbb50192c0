"""Loops that estimate second moments of newly grown weights of one tensor, whose live weights are rows (CSR).

``pointers`` (rows + 1) point into the live weights of its group; ``arriving`` (int64, ascending): positions
in the tensor, of ``width`` columns, of those of them that are new.
"""

from __future__ import annotations

import math
from typing import Any

from . import loop


@loop
def add_roots(
    moments: Any, pointers: Any, columns: Any, width: int, arriving: Any, scale: float,
    row_sums: Any, row_counts: Any, column_sums: Any, column_counts: Any,
) -> None:  # fmt: skip
    """Add √moment of the weights that are not new, times ``scale``, cut to whole numbers, to row and column."""
    n = 0
    for row in range(pointers.size - 1):
        for k in range(pointers[row], pointers[row + 1]):
            column = columns[k]
            if n < arriving.size and arriving[n] == row * width + column:
                n += 1
                continue
            root = int(math.sqrt(1.0 * moments[k]) * scale)  # a root of 64 bits, whatever the moment's are
            row_sums[row] += root
            row_counts[row] += 1
            column_sums[column] += root
            column_counts[column] += 1


@loop
def raise_moments(
    moments: Any, pointers: Any, columns: Any, width: int, arriving: Any, row_means: Any, column_means: Any,
    unit: float, share: float,
) -> None:  # fmt: skip
    """Raise those of new weights to ``share`` · (mean of row · mean of column · ``unit``)²."""
    n = 0
    for row in range(pointers.size - 1):
        if n == arriving.size:
            return
        end = (row + 1) * width
        for k in range(pointers[row], pointers[row + 1]):
            if n == arriving.size or arriving[n] >= end:
                break
            if arriving[n] == row * width + columns[k]:
                n += 1
                root = row_means[row] * column_means[columns[k]] * unit
                before = moments[k]
                moments[k] = root * root * share  # compared as rounded to their type
                if moments[k] < before:
                    moments[k] = before
