"""One update, planned: which live weights leave and which positions arrive (design §3).

Pure functions on positions and scores; storage and optimizer are not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from .criteria import Drop
from .scores import PositionMap
from .selection import highest_positive_k, lowest_k

SLOTS_PER_BLOCK: Final = 2**20
"""Growth scores looked at together; an update needs memory for so many and for the live weights."""

BlockScore = Callable[[int, int], Tensor]
"""Maps a range of slots, first and last + 1, to their growth scores (1-D)."""


@dataclass(frozen=True)
class UpdatePlan:
    """The outcome of one update of a group.

    ``leaving``: indices (ascending) into the live weights; ``arriving``: flat positions (ascending)
    that become live. Both have the same length, which is why a budget cannot drift. ``dropped`` = k,
    ``grown`` counts positions chosen by the growth score, ``regrown`` those of them that had just
    been dropped and so never left.
    """

    leaving: Tensor
    arriving: Tensor
    dropped: int
    grown: int
    regrown: int


def plan_update(live: Tensor, drop: Drop, score: BlockScore, where: PositionMap) -> UpdatePlan:
    """Choose growth among the dead positions and the dropped ones, and settle who really leaves.

    ``live``: the live positions, int64, ascending. ``drop``: the drop criterion's choice.
    ``score``: growth scores of the scored positions, which ``where`` numbers as slots; asked for
    block by block in ascending order. Positions that are not scored, NaN and infinite scores are
    never grown. Ties: lowest position first.
    """
    k = drop.indices.numel()
    kept = torch.ones(live.numel(), dtype=torch.bool, device=live.device)
    kept[drop.indices] = False
    pool = _pool_scores(where.slots(live[kept]), score, where.count)
    chosen = where.positions(highest_positive_k(pool, k, live.device))
    is_regrown = torch.isin(chosen, live[drop.indices], assume_unique=True)
    arriving = chosen[~is_regrown]
    losers = drop.indices[~torch.isin(live[drop.indices], chosen, assume_unique=True)]
    leaving = losers[lowest_k(drop.strength[losers], arriving.numel())]
    return UpdatePlan(leaving, arriving, k, chosen.numel(), int(is_regrown.sum()))


def _pool_scores(kept: Tensor, score: BlockScore, count: int) -> Iterator[tuple[int, Tensor]]:
    """The scores of all slots in blocks, zero at the slots of weights that stay (``kept``)."""
    kept = kept[kept >= 0]  # ascending, as positions are
    starts = torch.arange(0, count + SLOTS_PER_BLOCK, SLOTS_PER_BLOCK, device=kept.device)
    cuts = torch.searchsorted(kept, starts).tolist()
    for block, first in enumerate(range(0, count, SLOTS_PER_BLOCK)):
        scores = score(first, min(first + SLOTS_PER_BLOCK, count)).clone()
        scores[kept[cuts[block] : cuts[block + 1]] - first] = 0.0
        yield first, scores


def apply_plan(live: Tensor, plan: UpdatePlan) -> tuple[Tensor, Tensor]:
    """The new live positions (int64, ascending) and, per new position, where it comes from.

    The second tensor holds the index among the old live weights, or -1 for a position that is new.
    """
    stays = torch.ones(live.numel(), dtype=torch.bool, device=live.device)
    stays[plan.leaving] = False
    source = torch.cat([stays.nonzero().flatten(), torch.full_like(plan.arriving, -1)])
    positions, order = torch.cat([live[stays], plan.arriving]).sort()
    return positions, source[order]
