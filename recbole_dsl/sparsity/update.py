"""One update, planned: which live weights leave and which positions arrive (design §3).

Pure functions on positions and scores; storage and optimizer are not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .criteria import Drop
from .scores import PositionMap
from .selection import highest_positive_k, lowest_k


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


def plan_update(live: Tensor, drop: Drop, scores: Tensor, where: PositionMap) -> UpdatePlan:
    """Choose growth among the dead positions and the dropped ones, and settle who really leaves.

    ``live``: the live positions, int64, ascending. ``drop``: the drop criterion's choice.
    ``scores``: one growth score per scored position (``where`` maps between the two); positions
    that are not scored, NaN and infinite scores are never grown. Ties: lowest position first.
    """
    k = drop.indices.numel()
    pool = torch.nan_to_num(scores, nan=0.0, posinf=0.0)
    kept = torch.ones(live.numel(), dtype=torch.bool, device=live.device)
    kept[drop.indices] = False
    kept_slots = where.slots(live[kept])
    pool[kept_slots[kept_slots >= 0]] = 0.0

    chosen = where.positions(highest_positive_k(pool, k))
    is_regrown = torch.isin(chosen, live[drop.indices], assume_unique=True)
    arriving = chosen[~is_regrown]
    losers = drop.indices[~torch.isin(live[drop.indices], chosen, assume_unique=True)]
    leaving = losers[lowest_k(drop.strength[losers], arriving.numel())]
    return UpdatePlan(leaving, arriving, k, chosen.numel(), int(is_regrown.sum()))


def apply_plan(live: Tensor, plan: UpdatePlan) -> tuple[Tensor, Tensor]:
    """The new live positions (int64, ascending) and, per new position, where it comes from.

    The second tensor holds the index among the old live weights, or -1 for a position that is new.
    """
    stays = torch.ones(live.numel(), dtype=torch.bool, device=live.device)
    stays[plan.leaving] = False
    source = torch.cat([stays.nonzero().flatten(), torch.full_like(plan.arriving, -1)])
    positions, order = torch.cat([live[stays], plan.arriving]).sort()
    return positions, source[order]
