"""Second moments of newly grown weights, from those of the live weights in their row and column."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

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
            LiveRows([(rows, columns)], live.row_pointers[first : first + rows + 1], live.column_ids),
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
    unit = largest * own.numel() / 2**62  # int64 holds any sum
    by_row, by_column = (_Means(size, moments.device) for size in live.shapes[0])
    for span, row, column, new in _blocks(live, arriving):
        roots = moments[span][~new].double().sqrt_().div_(unit).long()
        by_row.add(row[~new], roots)
        by_column.add(column[~new], roots)
    mean = by_row.of_all()
    if mean == 0:
        return
    for span, row, column, new in _blocks(live, arriving):
        root = by_row.of(row[new], mean) * by_column.of(column[new], mean) * (unit / mean)
        least = moments[span][new]
        moments[span] = moments[span].masked_scatter(
            new, root.square_().mul_(share).to(least.dtype).maximum(least)
        )


class _Means:
    """Means of whole numbers by row, or by column."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._sums = torch.zeros(size, dtype=torch.int64, device=device)
        self._counts = torch.zeros_like(self._sums)

    def add(self, where: Tensor, numbers: Tensor) -> None:
        """``numbers`` (n,) int64 to the rows, or columns, ``where`` (n,) int64."""
        self._sums.index_add_(0, where, numbers)
        self._counts.index_add_(0, where, torch.ones_like(where))

    def of(self, where: Tensor, otherwise: float) -> Tensor:
        """Their means, float64, ``otherwise`` where nothing was added."""
        sums, counts = self._sums[where].double(), self._counts[where]
        return torch.where(counts > 0, sums / counts, otherwise)

    def of_all(self) -> float:
        """The mean of all, 0 if there are none."""
        return float(self._sums.sum()) / max(1, int(self._counts.sum()))


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
