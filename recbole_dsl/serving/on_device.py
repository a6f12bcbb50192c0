"""Search on a device of torch's, a GPU for instance: products of panels, and the best of each.

Items are held there with their zeros, since a GPU multiplies those faster than it looks weights up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .search import Found
from .table import Matrix, SparseTable, as_dense

_PANEL_SCORES = 1 << 24
"""Scores that are held at once."""


class DeviceItems:
    """Items on a device of torch's; answers are those of :mod:`~recbole_dsl.serving.search`, up to rounding."""

    def __init__(self, rows: SparseTable | Matrix, device: str) -> None:
        self._device = torch.device(device)
        self.matrix = torch.empty(rows.shape, dtype=torch.float32, device=self._device)
        for first in range(0, rows.shape[0], 1 << 16):
            part = np.ascontiguousarray(as_dense(rows, first, first + (1 << 16)))
            self.matrix[first : first + len(part)] = torch.from_numpy(part).to(self._device)

    def top(self, queries: SparseTable | Matrix, k: int, excluded: Sequence[np.ndarray]) -> list[Found]:
        """See :class:`~recbole_dsl.serving.search.Items`."""
        asked = torch.from_numpy(np.ascontiguousarray(as_dense(queries))).to(self._device)
        rows = np.repeat(np.arange(len(excluded)), [len(part) for part in excluded])
        numbers = np.concatenate([*excluded, np.empty(0, np.int64)]).astype(np.int64)
        panel = max(k, _PANEL_SCORES // max(1, len(asked)))
        found = torch.empty((len(asked), 0), dtype=torch.int64, device=self._device)
        for first in range(0, len(self.matrix), panel):
            scores = asked @ self.matrix[first : first + panel].T
            here = (numbers >= first) & (numbers < first + panel)
            out = torch.from_numpy(np.stack([rows[here], numbers[here] - first])).to(self._device)
            scores[out[0], out[1]] = -torch.inf
            found = torch.cat([found, _ordered(scores, first)], dim=1)
            found = found.topk(min(k, found.shape[1]), dim=1).values
        return [_unordered(row) for row in found.cpu().numpy()]

    def scores(self, queries: Matrix, numbers: np.ndarray) -> np.ndarray:
        """See :class:`~recbole_dsl.serving.search.Items`."""
        rows = self.matrix[torch.from_numpy(numbers).to(self._device)]
        return (torch.from_numpy(queries).to(self._device) @ rows.T).cpu().numpy()

    def all_scores(self, query: Matrix) -> np.ndarray:
        """See :class:`~recbole_dsl.serving.search.Items`."""
        return (self.matrix @ torch.from_numpy(query).to(self._device)).cpu().numpy()


def _ordered(scores: Tensor, first: int) -> Tensor:
    """Whole numbers in the order of the scores, and of equal scores the lower item's is larger."""
    bits = (scores + 0.0).view(torch.int32).to(torch.int64)  # + 0.0: minus zero equals zero
    upper = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    items = torch.arange(first, first + scores.shape[1], device=scores.device)
    return (upper << 32) | (0xFFFFFFFF - items)


def _unordered(codes: np.ndarray) -> Found:
    """Items and scores of such numbers, without those that are minus infinity."""
    upper = (codes >> 32).astype(np.int32)
    scores = np.where(upper < 0, upper ^ 0x7FFFFFFF, upper).astype(np.int32).view(np.float32)
    items = 0xFFFFFFFF - (codes & 0xFFFFFFFF)
    kept = scores > -np.inf
    return items[kept], scores[kept]
