"""How well tables rank interactions, by NDCG: what tables made without training are judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from .randomness import generator_for

if TYPE_CHECKING:
    from .interactions import Interactions

USERS: Final = 4096
"""How many users are asked for at most."""

TOP: Final = 10
"""Length of the rankings."""


def ndcg(
    users: Tensor, items: Tensor, asked: Interactions, seed: int, known: Interactions | None = None
) -> float:
    """NDCG@10 in [0, 1] of ``asked`` where inner products rank all items, those ``known`` left out.

    ``users`` (n_users × columns), ``items`` (n_items × columns); at most 4096 users are asked.
    """
    chosen = torch.unique(asked.users)
    if chosen.numel() > USERS:
        order = torch.randperm(chosen.numel(), generator=generator_for(seed, "width/users"))
        chosen = chosen[order[:USERS]].sort().values
    total = 0.0
    for some in chosen.split(512):
        scores = users[some] @ items.T
        if known is not None:
            scores[_marks(known, some)] = -torch.inf
        total += float(_ndcg(scores.topk(min(TOP, scores.shape[1])).indices, _marks(asked, some)).sum())
    return total / max(1, chosen.numel())


def _marks(interactions: Interactions, users: Tensor) -> Tensor:
    """Bool (users × items): whose items. ``users`` ascends."""
    row = torch.searchsorted(users, interactions.users).clamp_(max=users.numel() - 1)
    mine = users[row] == interactions.users
    marks = torch.zeros(users.numel(), interactions.n_items, dtype=torch.bool)
    marks[row[mine], interactions.items[mine]] = True
    return marks


def _ndcg(ranked: Tensor, wanted: Tensor) -> Tensor:
    """NDCG of each row of ``ranked`` (users × k item ids) for the ``wanted`` items (users × items, bool)."""
    discount = torch.arange(2, ranked.shape[1] + 2, dtype=torch.float32).log2().reciprocal()
    found = wanted.gather(1, ranked).float() @ discount
    count = wanted.sum(1).clamp(1, ranked.shape[1])
    return found / discount.cumsum(0)[count - 1]
