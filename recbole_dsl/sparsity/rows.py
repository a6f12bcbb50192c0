"""Live weights as an index by rows, read in blocks, so that no list of all positions is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor

from ..kernels import compiled
from ..kernels import update as loops

POSITIONS_PER_BLOCK: Final = 2**22
"""Positions, live and dead, that are looked at together."""


def row_blocks(shapes: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """(tensor, first row, last row + 1) of blocks of about :data:`POSITIONS_PER_BLOCK` positions.

    ``shapes``: (rows, columns) of the tensors. Ascending; a block has at least one row.
    """
    for tensor, (rows, cols) in enumerate(shapes):
        step = max(1, POSITIONS_PER_BLOCK // max(1, cols))
        for first in range(0, rows, step):
            yield tensor, first, min(first + step, rows)


@dataclass(frozen=True)
class LiveRows:
    """Where the live weights of a group are; a view of its index, not a copy.

    ``shapes``: (rows, columns) of each tensor; ``row_pointers`` (rows of all tensors + 1,): where each
    row's live weights start in the order of positions; ``column_ids`` (budget,): their columns.
    ``kernels``: the setting ``dsl_kernels``.
    """

    shapes: Sequence[tuple[int, int]]
    row_pointers: Tensor
    column_ids: Tensor
    kernels: str = "auto"

    @property
    def first_rows(self) -> list[int]:
        """Number of each tensor's first row among those of all tensors."""
        return list(accumulate((rows for rows, _ in self.shapes), initial=0))

    def of(self, tensor: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The live weights of some ``rows`` (n,) int64 of a tensor.

        Returns their indices among all live weights and their places in the matrix of these rows
        (n × columns), entry by entry; both int64, ascending where ``rows`` are.
        """
        # index_select is several times faster on a CPU than indexing with brackets.
        rows = rows + self.first_rows[tensor]
        starts = self.row_pointers.index_select(0, rows).long()
        lengths = self.row_pointers.index_select(0, rows + 1).long() - starts
        row = torch.repeat_interleave(lengths)
        index = (starts - lengths.cumsum(0) + lengths).index_select(0, row)
        index += torch.arange(index.numel(), device=index.device)
        return index, row.mul_(self.shapes[tensor][1]).add_(self.column_ids.index_select(0, index))

    def in_rows(self, chosen: Sequence[Tensor]) -> Tensor:
        """Bool, one per live weight: whether its row is among the ``chosen`` of its tensor (each int64)."""
        marks = torch.zeros_like(self.column_ids, dtype=torch.bool)
        for tensor, rows in enumerate(chosen):
            for some in rows.split(max(1, POSITIONS_PER_BLOCK // max(1, self.shapes[tensor][1]))):
                marks[self.of(tensor, some)[0]] = True
        return marks

    def copy_marks(self, tensor: int, rows: Tensor, marks: Tensor, out: Tensor) -> None:
        """Write ``marks`` (bool, per live weight) of some ``rows`` to their places in ``out``.

        ``rows`` (int64, ascending) of a tensor; ``out``: bool, (rows × columns,).
        """
        if compiled(self.kernels, marks, self.row_pointers, self.column_ids, rows, out):
            first, columns = self.first_rows[tensor], self.shapes[tensor][1]
            loops.copy_marks(marks, self.row_pointers, self.column_ids, first, rows, columns, out)
            return
        index, place = self.of(tensor, rows)
        out.index_copy_(0, place, marks.index_select(0, index))

    def separate(self, tensor: int, rows: Tensor, places: Tensor, marks: Tensor) -> Tensor:
        """Clear the ``marks`` (bool, per live weight) of the live weights at ``places``.

        ``rows`` as in :meth:`of`; ``places`` (int64, ascending) in their matrix, overwritten.

        Returns the places that are not live, ascending.
        """
        if compiled(self.kernels, marks, self.row_pointers, self.column_ids, rows, places):
            csr, columns = (self.row_pointers, self.column_ids, self.first_rows[tensor]), self.shapes[tensor][1]
            return places[: loops.separate(places, marks, *csr, rows, columns)]
        index, live = self.of(tensor, rows)
        size = rows.numel() * self.shapes[tensor][1]
        marks[index[_marks(places, size).index_select(0, live)]] = False
        return places[~_marks(live, size).index_select(0, places)]

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """All live positions block by block: (index of the first, flat positions int64), ascending."""
        first_rows = self.first_rows
        starts = list(accumulate((rows * cols for rows, cols in self.shapes), initial=0))
        for tensor, first, last in row_blocks(self.shapes):
            cols = self.shapes[tensor][1]
            pointers = self.row_pointers[first_rows[tensor] + first : first_rows[tensor] + last + 1]
            low, high = int(pointers[0]), int(pointers[-1])
            rows = torch.repeat_interleave(pointers.long().diff())
            positions = rows.mul_(cols).add_(self.column_ids[low:high])
            yield low, positions.add_(starts[tensor] + first * cols)

    def positions(self) -> Tensor:
        """All live positions at once, int64, ascending."""
        result = torch.empty(self.column_ids.numel(), dtype=torch.int64, device=self.column_ids.device)
        for first, positions in self.blocks():
            result[first : first + positions.numel()] = positions
        return result


def _marks(places: Tensor, size: int) -> Tensor:
    """Bool, ``size`` long, true at ``places``."""
    return torch.zeros(size, dtype=torch.bool, device=places.device).index_fill_(0, places, True)
