"""How well tables rank interactions, by NDCG: what tables made without training are judged by."""

from __future__ import annotations

from dataclasses import dataclass
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

SCORES: Final = 2**25
"""How many scores are made at once, each of five bytes with the mark of its item."""


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
    if chosen.numel() == 0:
        return 0.0
    wanted, left_out = _Items.of(asked, chosen), None if known is None else _Items.of(known, chosen)
    size = max(1, min(512, SCORES // max(1, asked.n_items)))
    total = sum(
        _of_users(users[chosen[first : first + size]], items, wanted, left_out, first)
        for first in range(0, chosen.numel(), size)
    )
    return total / chosen.numel()


def _of_users(users: Tensor, items: Tensor, wanted: _Items, left_out: _Items | None, first: int) -> float:
    """The sum over ``users`` (n × columns), which are number ``first`` … of those asked."""
    scores = users @ items.T
    if left_out is not None:
        scores[left_out.marks(first, scores)] = -torch.inf
    ranked = scores.topk(min(TOP, scores.shape[1])).indices
    return float(_ndcg(ranked, wanted.marks(first, scores)).sum())


@dataclass(frozen=True)
class _Items:
    """``items`` of ``rows``, which are numbers of users and ascend."""

    rows: Tensor
    items: Tensor

    @classmethod
    def of(cls, interactions: Interactions, users: Tensor) -> _Items:
        """Those of ``users``, which ascend, numbered from 0."""
        row = torch.searchsorted(users, interactions.users).clamp_(max=users.numel() - 1)
        mine = users[row] == interactions.users
        rows, order = row[mine].sort()
        return cls(rows, interactions.items[mine][order])

    def marks(self, first: int, like: Tensor) -> Tensor:
        """Whose items, bool of the shape of ``like``, whose rows are those from ``first`` on."""
        ends = torch.searchsorted(self.rows, torch.tensor([first, first + like.shape[0]])).tolist()
        marks = torch.zeros(like.shape, dtype=torch.bool)
        marks[self.rows[slice(*ends)] - first, self.items[slice(*ends)]] = True
        return marks


def _ndcg(ranked: Tensor, wanted: Tensor) -> Tensor:
    """NDCG of each row of ``ranked`` (users × k item ids) for the ``wanted`` items (users × items, bool)."""
    discount = torch.arange(2, ranked.shape[1] + 2, dtype=torch.float32).log2().reciprocal()
    found = wanted.gather(1, ranked).float() @ discount
    count = wanted.sum(1).clamp(1, ranked.shape[1])
    return found / discount.cumsum(0)[count - 1]
