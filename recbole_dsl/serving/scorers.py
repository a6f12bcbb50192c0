"""What makes recommendations of numbers of users: by inner products, with numpy alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .encoders import ENCODERS, Graph
from .search import Found, Items, items_of
from .table import Matrix, SparseTable, as_dense, dense_rows, norms, some_rows
from .top import best


class Scorer(Protocol):
    """A model that is served. Numbers are RecBole's; item 0 is padding and never recommended."""

    def top(self, users: np.ndarray, k: int, excluded: Sequence[np.ndarray]) -> list[Found]:
        """The best ``k`` items of every user; ``excluded`` are ascending numbers, item 0 among them."""

    def products(self, users: np.ndarray, candidates: np.ndarray) -> Matrix:
        """What ranks some items, a row for every user: their scores before :meth:`score`."""

    def score(self, products: np.ndarray) -> np.ndarray:
        """Scores, float32. They grow with products, but products that differ may have one score."""

    def similar(self, item: int, k: int) -> Found:
        """The ``k`` items whose vectors point most nearly the same way, by cosine; not the item itself."""


ACTIVATIONS = {None: lambda x: x, "sigmoid": lambda x: 1 / (1 + np.exp(-x.astype(np.float64)))}
"""What makes a score of an inner product; they grow with it, so the order is the same."""


_PANEL = 1 << 12
"""Rows that are made dense together."""


def _searched(items: SparseTable | Matrix, device: str | None) -> Items:
    if device is None:
        return items_of(items)
    from .on_device import DeviceItems

    return DeviceItems(items, device)


class VectorScorer:
    """Scores are inner products of vectors of users and items."""

    def __init__(
        self,
        users: SparseTable | Matrix,
        items: SparseTable | Matrix,
        activation: str | None = None,
        device: str | None = None,
    ) -> None:
        self.users, self.items = users, _searched(items, device)
        self._activation = ACTIVATIONS[activation]
        self.vectors = items

    @classmethod
    def of(
        cls,
        tensors: dict,
        graphs: dict[str, Graph],
        encoder: str,
        options: dict,
        device: str | None = None,
    ) -> VectorScorer:
        """The scorer of an artifact's parts."""
        users, items = ENCODERS[encoder](tensors, graphs, options)
        return cls(users, items, options.get("activation"), device)

    def top(self, users: np.ndarray, k: int, excluded: Sequence[np.ndarray]) -> list[Found]:
        """See :class:`Scorer`."""
        found = self.items.top(some_rows(self.users, users), k, excluded)
        return [(numbers, self.score(products)) for numbers, products in found]

    def score(self, products: np.ndarray) -> np.ndarray:
        """See :class:`Scorer`."""
        return self._activation(products).astype(np.float32)

    def products(self, users: np.ndarray, candidates: np.ndarray) -> Matrix:
        """See :class:`Scorer`."""
        return self.items.scores(dense_rows(self.users, users), candidates)

    def matrix(self, users: np.ndarray) -> Matrix:
        """Scores of all items for each of some users."""
        queries = dense_rows(self.users, users)
        blocks = range(0, self.vectors.shape[0], _PANEL)
        return self.score(np.hstack([queries @ as_dense(self.vectors, b, b + _PANEL).T for b in blocks]))

    def pairs(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The scores of pairs of a user and an item."""
        products = [
            np.einsum(
                "ij,ij->i",
                dense_rows(self.users, users[b : b + _PANEL]),
                dense_rows(self.vectors, items[b : b + _PANEL]),
            )
            for b in range(0, len(users), _PANEL)
        ]
        return self.score(np.concatenate(products))

    def similar(self, item: int, k: int) -> Found:
        """See :class:`Scorer`."""
        cosines = self.items.all_scores(dense_rows(self.vectors, np.array([item]))[0])
        cosines *= self._inverse_norms
        cosines *= self._inverse_norms[item]
        cosines[[0, item]] = -np.inf
        return best(cosines, k)

    @functools.cached_property
    def _inverse_norms(self) -> np.ndarray:
        return 1 / np.maximum(norms(self.vectors), np.float32(1e-12))
