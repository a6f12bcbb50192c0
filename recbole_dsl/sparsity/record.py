"""The exploration record: one bit per position that says whether it was live at least once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import compiled
from ..kernels import update as loops
from .rows import LiveRows
from .storage import SparseGroup


class ExplorationRecord:
    """Bits over a group's flat positions; starts with the initial topology.

    The share of set bits is the in-time over-parameterisation rate of Liu et al. (ITOP,
    arXiv 2102.02887).
    """

    def __init__(self, group: SparseGroup) -> None:
        self.positions = sum(rows * cols for rows, cols in group.table_shapes)
        self.bits = torch.zeros((self.positions + 7) // 8, dtype=torch.uint8, device=group.device)
        self.count = 0
        self.add_live(group.live_rows())

    def add_live(self, live: LiveRows) -> None:
        """Mark all live positions, block by block."""
        if not compiled(live.kernels, self.bits, live.row_pointers, live.column_ids):
            for _, positions in live.blocks():
                self.add(positions)
            return
        row = start = 0
        for rows, columns in live.shapes:
            index = (live.row_pointers, live.column_ids, row, rows, columns)
            self.count += loops.set_bits(self.bits, *index, start)
            row, start = row + rows, start + rows * columns

    def contains(self, positions: Tensor) -> Tensor:
        """Whether each of the positions (int64) was live before; bool."""
        self.bits = self.bits.to(positions.device)
        return (self.bits[positions >> 3] >> (positions & 7).to(torch.uint8)) & 1 == 1

    def add(self, positions: Tensor) -> None:
        """Mark distinct positions (int64) as having lived."""
        new = positions[~self.contains(positions)]
        # Distinct bits that are all unset: adding them is OR-ing them.
        one = torch.ones((), dtype=torch.uint8, device=new.device)
        self.bits.index_add_(0, new >> 3, one << (new & 7).to(torch.uint8))
        self.count += new.numel()

    @property
    def rate(self) -> float:
        """Share of positions that lived, in [0, 1]."""
        return self.count / self.positions

    @property
    def bytes(self) -> int:
        """Bytes of the record."""
        return self.bits.numel()
