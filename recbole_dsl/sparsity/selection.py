"""Exact top-k and bottom-k with one tie rule: among equal scores the lowest index comes first."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def lowest_k(scores: Tensor, k: int) -> Tensor:
    """Indices (int64, ascending) of the ``k`` lowest of the 1-D ``scores``; ties: lowest index first.

    NaN counts as higher than every number. ``torch.topk`` leaves the choice among equal scores open,
    which would make a topology depend on the device and the library version.
    """
    n = scores.numel()
    if k <= 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    if k >= n:
        return torch.arange(n, device=scores.device)
    cut = torch.kthvalue(scores, k).values  # sorts NaN last
    if bool(cut.isnan()):
        below, ties = (~scores.isnan()).nonzero().flatten(), scores.isnan().nonzero().flatten()
    else:
        below, ties = (scores < cut).nonzero().flatten(), (scores == cut).nonzero().flatten()
    return torch.cat([below, ties[: k - below.numel()]]).sort().values


def highest_k(scores: Tensor, k: int) -> Tensor:
    """Indices (int64, ascending) of the ``k`` highest of the 1-D ``scores``; ties: lowest index first.

    NaN counts as lower than every number.
    """
    return lowest_k(-scores, k)


def highest_positive_k(blocks: Iterable[tuple[int, Tensor]], k: int, device: torch.device) -> Tensor:
    """Indices (int64, ascending) of the ``k`` highest of the scores in (0, ∞); ties: lowest index first.

    Fewer than ``k`` indices if fewer scores are in that range.

    Args:
        blocks: the scores in pieces, each (index of its first score, 1-D scores), in ascending order,
            so that no more than a block and ``k`` candidates are held at a time.
        k: how many to choose, ≥ 0.
        device: where the scores are.
    """
    indices = torch.empty(0, dtype=torch.int64, device=device)
    best: Tensor | None = None
    floor = 0.0
    for first, scores in blocks:
        found = ((scores > floor) & (scores < torch.inf)).nonzero().flatten()
        indices = torch.cat([indices, found + first])
        best = scores[found] if best is None else torch.cat([best, scores[found]])
        if indices.numel() > k:
            kept = highest_k(best, k)
            indices, best = indices[kept], best[kept]
            # A later score equal to the k-th best so far loses the tie, so it must be higher.
            floor = float(best.min()) if k else torch.inf
    return indices
