"""Exact top-k and bottom-k with one tie rule: among equal scores the lowest index comes first."""

from __future__ import annotations

import torch
from torch import Tensor


def lowest_k(scores: Tensor, k: int) -> Tensor:
    """Indices (int64, ascending) of the ``k`` lowest of the 1-D ``scores``; ties: lowest index first.

    ``torch.topk`` leaves the choice among equal scores open, which would make a topology depend on
    the device and the library version.
    """
    n = scores.numel()
    if k <= 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    if k >= n:
        return torch.arange(n, device=scores.device)
    cut = torch.kthvalue(scores, k).values
    below = (scores < cut).nonzero().flatten()
    ties = (scores == cut).nonzero().flatten()[: k - below.numel()]
    return torch.cat([below, ties]).sort().values


def highest_k(scores: Tensor, k: int) -> Tensor:
    """Indices (int64, ascending) of the ``k`` highest of the 1-D ``scores``; ties: lowest index first."""
    return lowest_k(-scores, k)


def highest_positive_k(scores: Tensor, k: int) -> Tensor:
    """Like :func:`highest_k`, but only among scores > 0, so possibly fewer than ``k`` indices."""
    positive = int((scores > 0).sum())
    return highest_k(scores, min(k, positive))
