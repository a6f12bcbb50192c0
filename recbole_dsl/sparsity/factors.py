"""Non-negative factors of an interaction matrix, the data behind the ``nmf`` topology.

Source: multiplicative updates for the Euclidean loss, Lee and Seung, NIPS 2000.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn.functional import normalize


def degree_normalised(users: Tensor, items: Tensor, n_users: int, n_items: int) -> Tensor:
    """D_u^-½ R D_i^-½ of the binary interaction matrix R as CSR (n_users × n_items), float32.

    ``users``, ``items``: int64 ids of the same length; repeated pairs count once.
    """
    pairs = torch.unique(users.long() * n_items + items.long())
    users, items = pairs // n_items, pairs % n_items
    degree_u = torch.bincount(users, minlength=n_users).clamp_min(1).float()
    degree_i = torch.bincount(items, minlength=n_items).clamp_min(1).float()
    values = degree_u[users].rsqrt() * degree_i[items].rsqrt()
    starts = torch.zeros(n_users + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(users, minlength=n_users).cumsum(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, items, values, (n_users, n_items), check_invariants=True)


def transposed(matrix: Tensor) -> Tensor:
    """The transpose of a CSR matrix, as CSR."""
    coo = matrix.to_sparse_coo()
    return coo.t().coalesce().to_sparse_csr()


def nonnegative_factors(
    matrix: Tensor, rank: int, generator: torch.Generator, iterations: int = 100
) -> tuple[Tensor, Tensor]:
    """Non-negative W (n × rank), H (m × rank) with W Hᵀ ≈ ``matrix`` (sparse CSR, n × m, ≥ 0).

    Memory: the two factors twice; time per iteration: two sparse products and four rank × rank
    ones. Rows without entries become zero. Draws only from ``generator``.
    """
    n, m = matrix.shape
    back = transposed(matrix)
    total = float(matrix.values().sum())
    scale = (total / max(1.0, float(n) * float(m) * rank)) ** 0.5
    w, h = (scale * torch.rand(size, rank, generator=generator, dtype=matrix.dtype) for size in (n, m))
    tiny = torch.finfo(w.dtype).tiny
    for _ in range(iterations):
        w *= (matrix @ h) / (w @ (h.t() @ h)).clamp_min_(tiny)
        h *= (back @ w) / (h @ (w.t() @ w)).clamp_min_(tiny)
    return w, h


def scaled(users: Tensor, items: Tensor, item_degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of a degree-normalised matrix as embeddings whose inner products rank items.

    Users' rows all get norm 1: it decides nothing about the ranking, and how strongly a user's steps move
    the items. Items' rows are multiplied by √degree, which undoes the normalisation, so an item's
    popularity is in its norm; then all by one number, so that the root mean square of the norms of rows
    that are not zero is 1, too.

    ``users`` (n × rank), ``items`` (m × rank) ≥ 0; ``item_degrees`` (m,) ≥ 0.
    """
    items = items * item_degrees.sqrt()[:, None]
    squares = items.square().sum(1)
    mean = squares.sum() / squares.count_nonzero().clamp(min=1)
    items = items / mean.sqrt().clamp(min=torch.finfo(items.dtype).tiny)
    return normalize(users, dim=1), items
