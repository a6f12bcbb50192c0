"""One update, planned: which live weights leave and which positions arrive (design §3).

Pure functions on an index and scores; storage and optimizer are not known here. They go through both
block by block and hold, beside a block, a byte per live weight and eight per exchanged one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from .criteria import Drop
from .rows import LiveRows
from .scores import PositionMap
from .selection import BlockScore, ScoredBlock, highest_positive_k, keep_lowest

SLOTS_PER_BLOCK: Final = 2**18
"""Growth scores looked at together, rounded to whole rows: what stays in a processor's cache."""

SLOTS_PER_BLOCK_ON_GPU: Final = 2**22
"""The same on a GPU, which waits for every block; about 100 MB."""


@dataclass(frozen=True)
class UpdatePlan:
    """The outcome of one update of a group.

    ``leaving``: bool, one per live weight; ``arriving``: flat positions (int64, ascending) that become
    live. As many leave as arrive, which is why a budget cannot drift. ``dropped`` = k, ``grown`` counts
    positions chosen by the growth score, ``regrown`` those of them that had just been dropped and so
    never left.
    """

    leaving: Tensor
    arriving: Tensor
    dropped: int
    grown: int
    regrown: int


def plan_update(live: LiveRows, drop: Drop, score: BlockScore, where: PositionMap) -> UpdatePlan:
    """Choose growth among the dead positions and the dropped ones, and settle who really leaves.

    ``live``: the live weights. ``drop``: the drop criterion's choice, whose marks become those of the
    leaving weights. ``score``: growth scores of the scored positions, which ``where`` numbers as slots;
    asked for block by block in ascending order, from the first anew at every pass. Positions that are
    not scored, NaN and infinite scores are never grown. Ties: lowest position first.
    """
    k = int(drop.marks.count_nonzero())  # a sum would make int64 of every mark
    chosen = highest_positive_k(_Pool(live, drop.marks, score, where), k, drop.marks.device, live.kernels)
    grown = chosen.numel()
    arriving = _without_regrown(chosen, live, drop.marks, where)
    keep_lowest(drop.marks, drop.strength, arriving.numel(), live.kernels)
    return UpdatePlan(drop.marks, arriving, k, grown, grown - arriving.numel())


class _Pool:
    """The scores of all slots in blocks, of which weights that stay are no candidates; can be read again."""

    def __init__(self, live: LiveRows, dropped: Tensor, score: BlockScore, where: PositionMap) -> None:
        self.live, self.dropped, self.score, self.where = live, dropped, score, where

    def __iter__(self) -> Iterator[ScoredBlock]:
        for block in self.where.blocks(_block_size(self.dropped.device)):
            candidates = self.dropped.new_ones(block.last - block.first)
            self.live.copy_marks(block.tensor, block.rows, self.dropped, candidates)
            yield block.first, self.score(block.first, block.last), candidates


def _block_size(device: torch.device) -> int:
    return SLOTS_PER_BLOCK if device.type == "cpu" else SLOTS_PER_BLOCK_ON_GPU


def _without_regrown(chosen: Tensor, live: LiveRows, dropped: Tensor, where: PositionMap) -> Tensor:
    """The positions of the ``chosen`` slots (ascending) that were not live; ``chosen`` is overwritten.

    Those that were had been dropped: their marks are cleared.
    """
    size = _block_size(chosen.device)
    ends = torch.tensor([block.last for block in where.blocks(size)], device=chosen.device)
    start, count = 0, 0
    for block, end in zip(where.blocks(size), torch.searchsorted(chosen, ends).tolist(), strict=True):
        places, start = chosen[start:end] - block.first, end
        new = where.positions(live.separate(block.tensor, block.rows, places, dropped).add_(block.first))
        chosen[count : count + new.numel()] = new  # never ahead of what is still to be read
        count += new.numel()
    return chosen[:count]
