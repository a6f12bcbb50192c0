"""Second moments of newly grown weights, from those of the live weights in their row and column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..kernels import compiled
from ..kernels import moments as loops
from ..sparsity.rows import LiveRows


@torch.no_grad()
def estimate_moments(moments: Tensor, live: LiveRows, arriving: Tensor, share: float) -> None:
    """Raise the second moments of the weights at ``arriving`` to ``share`` of those around them.

    A weight in row i and column j gets share · (r_i · c_j / m)², with r_i, c_j and m the means of √moment over
    the other live weights of its row, its column and its tensor: the estimate of rank one that Adafactor
    makes of all second moments (Shazeer & Stern, ICML 2018, section 3), here of their roots, by which
    optimizers divide. A row or column without others counts as the tensor's mean.

    Sums are whole numbers, so they are the same in whatever order a GPU adds. Memory: a block of rows, and a
    number for each row and column.

    Args:
        moments: (budget,) per live weight, in the order of positions, ≥ 0; changed in place.
        live: the index after the update.
        arriving: flat positions of the weights that it has grown, int64, ascending.
        share: in [0, 1].
    """
    start = 0
    for (rows, columns), first in zip(live.shapes, live.first_rows, strict=False):
        ends = torch.searchsorted(arriving, arriving.new_tensor([start, start + rows * columns])).tolist()
        _estimate(
            moments,
            replace(live, shapes=[(rows, columns)], row_pointers=live.row_pointers[first : first + rows + 1]),
            arriving[ends[0] : ends[1]] - start,
            share,
        )
        start += rows * columns


def _estimate(moments: Tensor, live: LiveRows, arriving: Tensor, share: float) -> None:
    """The same for one tensor, whose positions count from 0."""
    own = moments[int(live.row_pointers[0]) : int(live.row_pointers[-1])]
    largest = float(own.max()) ** 0.5 if arriving.numel() else 0.0
    if not 0 < largest < float("inf"):
        return  # nothing was grown, or trained yet, or training has failed
    scale = 2**62 / (largest * own.numel())  # int64 holds any sum of roots in these units
    rows, columns = (_Means(size, moments.device) for size in live.shapes[0])
    tensor = (moments, live.row_pointers, live.column_ids, live.shapes[0][1], arriving)
    by_loops = compiled(live.kernels, moments, live.row_pointers, live.column_ids, arriving)
    if by_loops:
        loops.add_roots(*tensor, scale, rows.sums, rows.counts, columns.sums, columns.counts)
    else:
        for span, row, column, new in _blocks(live, arriving):
            old = ~new
            roots = _roots(moments[span][old].double()).mul_(scale).long()
            rows.add(row[old], roots)
            columns.add(column[old], roots)
    mean = rows.of_all()
    if mean == 0:
        return
    by_row, by_column, unit = rows.means(mean), columns.means(mean), 1 / (scale * mean)
    if by_loops:
        loops.raise_moments(*tensor, by_row, by_column, unit, share)
        return
    for span, row, column, new in _blocks(live, arriving):
        root = by_row[row[new]] * by_column[column[new]] * unit
        least = moments[span][new]
        moments[span] = moments[span].masked_scatter(
            new, root.square_().mul_(share).to(least.dtype).maximum(least)
        )


def _roots(numbers: Tensor) -> Tensor:
    """√ of float64 numbers, correctly rounded, as torch's own is not on every CPU."""
    return torch.from_numpy(np.sqrt(numbers.numpy())) if numbers.device.type == "cpu" else numbers.sqrt()


class _Means:
    """Means of whole numbers by row, or by column."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.sums = torch.zeros(size, dtype=torch.int64, device=device)
        self.counts = torch.zeros_like(self.sums)

    def add(self, where: Tensor, numbers: Tensor) -> None:
        """``numbers`` (n,) int64 to the rows, or columns, ``where`` (n,) int64."""
        self.sums.index_add_(0, where, numbers)
        self.counts.index_add_(0, where, torch.ones_like(where))

    def means(self, otherwise: float) -> Tensor:
        """Of every row, or column, float64, ``otherwise`` where nothing was added."""
        return torch.where(self.counts > 0, self.sums.double() / self.counts, otherwise)

    def of_all(self) -> float:
        """The mean of all, 0 if there are none."""
        return float(self.sums.sum()) / max(1, int(self.counts.sum()))


def _blocks(live: LiveRows, arriving: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """A tensor's live weights by blocks of rows: where among all, rows, columns (int64), whether new (bool)."""
    width = live.shapes[0][1]
    for low, positions in live.blocks():
        span = slice(low, low + positions.numel())
        if positions.numel():
            first, last = torch.searchsorted(
                arriving, positions[[0, -1]] + arriving.new_tensor([0, 1])
            ).tolist()
            new = torch.zeros_like(positions, dtype=torch.bool)
            new[torch.searchsorted(positions, arriving[first:last])] = True
            yield span, positions.div_(width, rounding_mode="floor"), live.column_ids[span].long(), new
