"""How many columns the tables of users and items get, chosen by the interactions: ``dsl_width: auto``.

A row's live weights cost the same among 16 columns or 256, and a byte of index more each beyond. Factors of
few columns describe broad tastes and need many weights in each row; those of many columns describe narrow
ones and need few. Which of them a budget serves best depends on the data, and is seen before training:
factors of a part of the interactions, of which only as many entries stay as the budget allows, are asked for
the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch

from .factors import Factorisation
from .interactions import Interactions
from .randomness import generator_for
from .ranking import ndcg
from .topology import Factor, TopologyContext, of_factors

HELD_OUT: Final = 0.1
"""Share of the interactions that factors are asked for."""

FACTOR_BYTES: Final = 2**30
"""What the factors of a wider table may take; while they are made, up to seven times that is held."""

WIDER: Final = 1.03
"""So much better a table of twice the width must rank, since it takes more time and growth scores, and beyond
256 columns a byte more of index."""

NARROWER: Final = 1.05
"""So much better one of half the width must."""

LIVE_SHARE: Final = 0.1
"""Of the columns at most, in a table made narrower: training makes more of columns than factors do."""


def best_width(
    interactions: Interactions, own: int, weights_per_row: float, seed: int, kind: str, widest: int
) -> int:
    """The number of columns: ``own`` times a power of two, from a quarter to at most ``widest`` or ``own``.

    Wider tables whose factors would take more than a GiB are not tried.

    From ``own`` on, twice the width as long as held-out interactions are ranked 3 % better; otherwise half
    of it as long as they are ranked 5 % better and no more than a tenth of the columns live. The same
    interactions and seed give the same width. Time: that of a factorisation for every width that is tried.

    Args:
        interactions: those of training.
        own: columns of the dense model's tables, ≥ 1.
        weights_per_row: live weights of a row on average, > 0.
        seed: of our own generator.
        kind: of factors, a key of :data:`~recbole_dsl.sparsity.factors.FACTORISATIONS`.
        widest: columns at most, where they are more than ``own``.
    """
    known, asked = _split(interactions, seed)
    if asked.users.numel() == 0:
        return own

    def quality(width: int) -> float:
        return ranking_quality(known, asked, width, weights_per_row, seed, kind)

    row_bytes = 4 * (interactions.n_users + interactions.n_items)
    doublings = range(1, max(1, widest // own).bit_length())
    wider = [own << d for d in doublings if (own << d) * row_bytes <= FACTOR_BYTES]
    narrower = [w for w in (own // 2, own // 4) if 0 < weights_per_row <= LIVE_SHARE * w]
    here = quality(own)
    best = _climb(own, here, wider, quality, WIDER)
    return best if best != own else _climb(own, here, narrower, quality, NARROWER)


def _climb(start: int, here: float, steps: Sequence[int], quality: Callable[[int], float], gain: float) -> int:
    """The last of ``steps`` up to which each is ``gain`` times as good as that before; ``start`` if none is."""
    best = start
    for width in steps:
        there = quality(width)
        if there < gain * here:
            break
        best, here = width, there
    return best


def _split(interactions: Interactions, seed: int) -> tuple[Interactions, Interactions]:
    """The interactions without a tenth, drawn at random, and that tenth."""
    n_users, n_items = interactions.n_users, interactions.n_items
    pairs = torch.unique(interactions.users.long() * n_items + interactions.items.long())
    drawn = torch.rand(pairs.numel(), generator=generator_for(seed, "width/split")) < HELD_OUT
    parts = (pairs[~drawn], pairs[drawn])
    known, asked = (Interactions(p // n_items, p % n_items, n_users, n_items) for p in parts)
    return known, asked


def ranking_quality(
    known: Interactions, asked: Interactions, width: int, weights_per_row: float, seed: int, kind: str
) -> float:
    """NDCG@10 in [0, 1] of ``asked``, over all items not ``known``, by the tables that training starts from.

    They come at power and popularity ½, at which inner products rank best, whatever training's are. ``width``
    columns, of which ``weights_per_row`` live in a row on average; at most 4096 users are asked.
    """
    generator = generator_for(seed, f"width/{width}")
    factors = known.embeddings(width, generator, Factorisation(kind), quick=True)
    rows = known.n_users + known.n_items
    budget = min(rows * width, int(weights_per_row * rows))
    shapes, proposed = [f.shape for f in factors], [Factor(f) for f in factors]
    start = of_factors(TopologyContext(shapes, budget, factors, proposed, generator))
    assert start.values is not None
    tables = (
        torch.zeros(rows * width, dtype=factors[0].dtype)
        .index_copy_(0, start.live, start.values)
        .view(rows, width)
    )
    users, items = tables[: known.n_users], tables[known.n_users :]
    return ndcg(users, items, asked, seed, known)
