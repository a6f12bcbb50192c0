"""The k best of many scores, exactly, ties by the lower number."""

from __future__ import annotations

import numpy as np

_BLOCK = 512


def best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and scores of the best ``k`` that are more than minus infinity, the best first.

    Args:
        scores: shape (n,), float32 without NaN.
    """
    bound = _lower_bound(scores, k)
    # All above the bound, and minus infinity never.
    candidates = np.flatnonzero(scores >= bound if bound > -np.inf else scores > -np.inf)
    found = scores[candidates]
    if len(candidates) > 4 * k + 64:
        kth = np.partition(found, len(found) - k)[len(found) - k]
        keep = found >= kth
        candidates, found = candidates[keep], found[keep]
    order = np.lexsort((candidates, -found))[:k]
    return candidates[order], found[order]


def _lower_bound(scores: np.ndarray, k: int) -> float:
    """A score that at least ``k`` reach: the k-th best of the maxima of blocks, if there are so many blocks."""
    blocks = len(scores) // _BLOCK
    if blocks < 4 * k:
        return -np.inf
    maxima = scores[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
    return float(np.partition(maxima, blocks - k)[blocks - k])
