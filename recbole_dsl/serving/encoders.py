"""Vectors of users and items whose inner product is a model's score, made from an artifact's tensors.

An encoder is a function and a row of :data:`ENCODERS`. It is given the tensors by name, the interactions
as compressed rows by name, and the manifest's options, and returns (users, items): a row for each number.
All of it is numpy; each encoder does what the named model's ``forward`` does in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .table import Matrix, SparseTable, as_dense, lengths_one, pointers_of

Rows = SparseTable | Matrix
Tensors = Mapping[str, Rows]

_EDGES: Final = 1 << 15
"""Rows that are gathered together: few enough to stay in a cache."""


@dataclass(frozen=True)
class Graph:
    """Which items each user has: ``pointers`` (users + 1) into ``items``. ``size``: number of items."""

    pointers: np.ndarray
    items: np.ndarray
    size: int

    @classmethod
    def of_counts(cls, counts: np.ndarray, items: np.ndarray, size: int) -> Graph:
        """From the number of items of every user."""
        return cls(pointers_of(counts), items, size)

    @property
    def counts(self) -> np.ndarray:
        """Items of each user."""
        return np.diff(self.pointers)

    def row(self, user: int) -> np.ndarray:
        """The items of a user."""
        return self.items[self.pointers[user] : self.pointers[user + 1]]

    def transposed(self) -> Graph:
        """Which users each item has, ascending."""
        users = np.repeat(np.arange(len(self.pointers) - 1), self.counts)
        order = np.argsort(self.items, kind="stable")
        counts = np.bincount(self.items, minlength=self.size)
        return Graph(pointers_of(counts), users[order], len(self.pointers) - 1)


def sum_of_rows(graph: Graph, matrix: Matrix, weights: np.ndarray | None = None) -> Matrix:
    """For each row of the graph the sum of the rows of ``matrix`` it names, each times its weight."""
    result = np.zeros((len(graph.pointers) - 1, matrix.shape[1]), matrix.dtype)
    filled = np.flatnonzero(graph.counts)
    starts = graph.pointers[filled]
    first = 0
    while first < len(filled):
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + _EDGES)))
        rows = filled[first:last]
        here = slice(starts[first], graph.pointers[rows[-1] + 1])
        gathered = matrix[graph.items[here]]
        if weights is not None:
            gathered *= weights[here, None]
        result[rows] = np.add.reduceat(gathered, starts[first:last] - starts[first], axis=0)
        first = last
    return result


class _Adjacency:
    """D^-½ A D^-½ of the bipartite graph of users and items, as LightGCN and NGCF normalise it."""

    def __init__(self, graph: Graph) -> None:
        self.of_users, self.of_items = graph, graph.transposed()
        users, items = (np.power(g.counts + 1e-7, -0.5) for g in (self.of_users, self.of_items))
        self.user_weights = self._weights(self.of_users, users, items)
        self.item_weights = self._weights(self.of_items, items, users)

    @staticmethod
    def _weights(graph: Graph, own: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (np.repeat(own, graph.counts) * other[graph.items]).astype(np.float32)

    def product(self, users: Matrix, items: Matrix) -> tuple[Matrix, Matrix]:
        return (
            sum_of_rows(self.of_users, items, self.user_weights),
            sum_of_rows(self.of_items, users, self.item_weights),
        )


def tables(tensors: Tensors, graphs: Mapping[str, Graph], options: Mapping[str, Any]) -> tuple[Rows, Rows]:
    """The tables as they are (BPR), or vectors that were computed when the artifact was written.

    Columns of users may have a weight each (ENMF, AAAI 2020).
    """
    users, weights = tensors["users"], tensors.get("column_weights")
    if weights is not None:
        flat = np.asarray(weights).reshape(-1)
        users = users.scaled(by_column=flat) if isinstance(users, SparseTable) else users * flat
    return users, tensors["items"]


def light_graph(tensors: Tensors, graphs: Mapping[str, Graph], options: Mapping[str, Any]) -> tuple[Rows, Rows]:
    """The mean over the tables and ``layers`` products with the graph (LightGCN, arXiv 2002.02126)."""
    adjacency = _Adjacency(graphs["graph"])
    users, items = as_dense(tensors["users"]), as_dense(tensors["items"])
    layers = [(users, items)]
    for _ in range(options["layers"]):
        layers.append(adjacency.product(*layers[-1]))
    count = np.float32(len(layers))
    return sum(u for u, _ in layers) / count, sum(i for _, i in layers) / count


def ngcf(tensors: Tensors, graphs: Mapping[str, Graph], options: Mapping[str, Any]) -> tuple[Rows, Rows]:
    """All layers side by side; a layer is LeakyReLU((L + I) E W₁ + L E ⊙ E W₂), its rows of length one
    (NGCF, arXiv 1905.08108)."""
    adjacency = _Adjacency(graphs["graph"])
    before = (as_dense(tensors["users"]), as_dense(tensors["items"]))
    layers = [before]
    for number in range(options["layers"]):
        weights = [
            (as_dense(tensors[f"layer{number}.{part}.weight"]).T, tensors[f"layer{number}.{part}.bias"])
            for part in ("linear", "interact")
        ]
        before = tuple(
            _ngcf_layer(features, product, weights)
            for features, product in zip(before, adjacency.product(*before), strict=True)
        )
        layers.append(before)
    return np.hstack([u for u, _ in layers]), np.hstack([i for _, i in layers])


def _ngcf_layer(features: Matrix, product: Matrix, weights: list[tuple[Matrix, Any]]) -> Any:
    (linear, linear_bias), (interact, interact_bias) = weights
    total = (features + product) @ linear + linear_bias + ((product * features) @ interact + interact_bias)
    return lengths_one(np.where(total > 0, total, np.float32(0.2) * total))


def simplex(tensors: Tensors, graphs: Mapping[str, Graph], options: Mapping[str, Any]) -> tuple[Rows, Rows]:
    """Users plus the mapped mean of their items; all of length one (SimpleX, arXiv 2109.12613)."""
    graph, gamma = graphs["aggregated"], np.float32(options["gamma"])
    sums = sum_of_rows(graph, as_dense(tensors["items"]))
    means = sums / (graph.counts.astype(np.float32) + np.float32(1e-10))[:, None]
    users = gamma * as_dense(tensors["users"]) + (1 - gamma) * (means @ as_dense(tensors["map"]).T)
    return lengths_one(users), lengths_one(tensors["items"])


def dmf(tensors: Tensors, graphs: Mapping[str, Graph], options: Mapping[str, Any]) -> tuple[Rows, Rows]:
    """Two perceptrons, over the items of a user and over the users of an item (DMF, IJCAI 2017)."""
    graph = graphs["graph"]
    sides = []
    for side, rows in (("user", graph), ("item", graph.transposed())):
        hidden = sum_of_rows(rows, np.ascontiguousarray(as_dense(tensors[f"{side}.first.weight"]).T))
        for number in range(options[f"{side}_layers"]):
            weight, bias = tensors[f"{side}{number}.weight"], tensors[f"{side}{number}.bias"]
            hidden = np.maximum(hidden @ as_dense(weight).T + as_dense(bias), 0)
        sides.append(hidden)
    return sides[0], sides[1]


Encoder = Callable[[Tensors, Mapping[str, Graph], Mapping[str, Any]], tuple[Rows, Rows]]

ENCODERS: Final[dict[str, Encoder]] = {
    "tables": tables,
    "light_graph": light_graph,
    "ngcf": ngcf,
    "simplex": simplex,
    "dmf": dmf,
}
"""By the name in the manifest."""
