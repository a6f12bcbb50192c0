"""Factors of an interaction matrix, the data behind the topologies ``nmf`` and ``spectral``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

OVERSAMPLED: Final = 16
"""Dimensions of the subspace beyond those that are asked for."""

ENOUGH: Final = 1e-3
"""What an iteration of the rotation must add to its criterion, relatively, to be followed by another."""

COLUMNS_PER_BLOCK: Final = 64
"""Columns that are multiplied by a sparse matrix together."""

ROWS_PER_BLOCK: Final = 2**16
"""Rows of a factor that are turned together."""

RELATIVE_TO_LARGEST: Final = 1e-6
"""Singular values below that share of the largest are rounding."""


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

    Memory, measured: about four times that of the two factors; time per iteration: two sparse products and four
    rank × rank ones. Rows without entries become zero. Draws only from ``generator``. Source: multiplicative
    updates for the Euclidean loss, Lee and Seung, NIPS 2000.
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


def spectral_factors(
    matrix: Tensor,
    rank: int,
    generator: torch.Generator,
    power: float = 0.5,
    iterations: int = 20,
    turns: int = 60,
) -> tuple[Tensor, Tensor]:
    """U Sᵖ R (n × rank) and V Sᵖ R (m × rank) of a sparse CSR ``matrix`` (n × m) with singular values S.

    U S Vᵀ is its best approximation of that rank; R, a rotation, which no inner product sees, is the one at
    which a few entries say most of a row (varimax). Columns beyond the rank of the matrix and rows without
    entries are zero. Draws only from ``generator``.

    Args:
        power: p in [0, 1]. At ½ inner products approximate the matrix; the lower, the more narrow tastes count
            beside broad ones.
        iterations: of the subspace.
        turns: of the rotation, at most.

    All of it in float64: rounding would make another topology of another number of threads. The subspace is
    that of users or items, whichever are fewer, and products are made of some columns at a time. Memory: beside
    the factors, which are float32, about six matrices of the fewer's rows (measured), 64 columns of the
    others', and all columns of the users' where they are more, in float64. Time per iteration: two sparse
    products and an orthogonalisation of the fewer's rows. Sources: Halko, Martinsson and
    Tropp, SIAM Review 2011, algorithm 4.4; Kaiser, Psychometrika 1958, with every user's row of length 1.
    """
    forth, back = (m.to(torch.float64) for m in (matrix, transposed(matrix)))
    users_fewer = forth.shape[0] <= back.shape[0]
    flat, tall = (forth, back) if users_fewer else (back, forth)
    size = min(rank + OVERSAMPLED, flat.shape[0])
    basis = torch.linalg.qr(torch.randn(flat.shape[0], size, generator=generator, dtype=torch.float64)).Q
    for _ in range(iterations):
        image = _product(tall, basis, flat)
        del basis
        basis = torch.linalg.qr(image).Q
        del image
    squares, vectors = torch.linalg.eigh(basis.t() @ _product(tall, basis, flat))  # ascending
    kept = min(rank, int((squares > RELATIVE_TO_LARGEST**2 * squares[-1:]).sum()))
    values = squares[squares.numel() - kept :].sqrt()
    basis = basis @ vectors[:, vectors.shape[1] - kept :]
    fewer, others = basis * values.pow(power), basis * values.pow(power - 1)  # of others, before the product
    del basis
    rotation = varimax(fewer if users_fewer else _product(tall, others), turns)
    found = [torch.zeros(m.shape[0], rank, dtype=torch.float32) for m in (flat, tall)]
    found[0][:, :kept] = fewer @ rotation
    found[0].mul_((flat.crow_indices().diff() > 0)[:, None])  # where rounding has left a trace
    _product(tall, others @ rotation, out=found[1])
    return (found[0], found[1]) if users_fewer else (found[1], found[0])


def _product(matrix: Tensor, dense: Tensor, then: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """``then`` times ``matrix`` (both sparse) times ``dense``, some columns at a time; written into ``out``."""
    if out is None:
        out = dense.new_empty((matrix if then is None else then).shape[0], dense.shape[1])
    for first in range(0, dense.shape[1], COLUMNS_PER_BLOCK):
        columns = slice(first, min(first + COLUMNS_PER_BLOCK, dense.shape[1]))
        some = matrix @ dense[:, columns].contiguous()
        out[:, columns] = some if then is None else then @ some
    return out


def varimax(loadings: Tensor, iterations: int = 60) -> Tensor:
    """The rotation R (k × k) at which squares of ``loadings`` R (n × k) vary most in columns (Kaiser 1958).

    Every row counts as if its length were 1. Ends early where an iteration adds less than a thousandth.
    """
    n, k = loadings.shape
    rotation, squares = torch.eye(k, dtype=loadings.dtype), torch.zeros(k, k, dtype=loadings.dtype)
    for some in loadings.split(ROWS_PER_BLOCK):
        some = normalize(some, dim=1)
        squares += some.t() @ some
    reached = 0.0
    for _ in range(iterations):
        cubes, turned = torch.zeros_like(rotation), squares @ rotation
        for some in loadings.split(ROWS_PER_BLOCK):
            some = normalize(some, dim=1)  # again, since to keep them would take as much as the factors
            cubes += some.t() @ (some @ rotation).pow_(3)
        variances = (rotation * turned).sum(0) / max(1, n)
        before, reached = reached, float((rotation * cubes).sum() - n * variances.square().sum())
        if 0 < reached < (1 + ENOUGH) * before:
            break
        left, _, right = torch.linalg.svd(cubes - turned * variances)
        rotation = left @ right
    return rotation


def scaled(
    users: Tensor, items: Tensor, item_degrees: Tensor, popularity: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Factors of a degree-normalised matrix as embeddings whose inner products rank items.

    Users' rows all get norm 1: it decides nothing about the ranking, and how strongly a user's steps move
    the items. Items' rows are multiplied by degree^``popularity``, which at ½ undoes the normalisation, so an
    item's popularity is in its norm, and below counts less (popular items have longer rows even before; about
    -¼ makes all equally long); then all by one number, so that the root mean square of the norms of rows that
    are not zero is 1, too.

    ``users`` (n × rank), ``items`` (m × rank); ``item_degrees`` (m,) ≥ 0; ``popularity`` in [-1, 1].
    """
    items = items * item_degrees.clamp(min=1).to(items.dtype).pow(popularity)[:, None]
    squares = items.square().sum(1)
    mean = squares.sum() / squares.count_nonzero().clamp(min=1)
    items = items / mean.sqrt().clamp(min=torch.finfo(items.dtype).tiny)
    return normalize(users, dim=1), items


@dataclass(frozen=True)
class Factorisation:
    """How an interaction matrix is factorised.

    ``kind``: a key of :data:`FACTORISATIONS`; ``power``: of the singular values (``dsl_init_power``), where
    there are any; ``popularity``: the power of an item's degree in its row (``dsl_init_popularity``).
    """

    kind: str
    power: float = 0.5
    popularity: float = 0.5

    def of(self, matrix: Tensor, rank: int, generator: torch.Generator, quick: bool) -> tuple[Tensor, Tensor]:
        """Factors (n × rank), (m × rank) of a sparse CSR matrix; ``quick``: good enough to compare ranks by."""
        return FACTORISATIONS[self.kind](matrix, rank, generator, self.power, quick)


def _nmf(
    matrix: Tensor, rank: int, generator: torch.Generator, power: float, quick: bool
) -> tuple[Tensor, Tensor]:
    return nonnegative_factors(matrix, rank, generator, 60 if quick else 100)


def _spectral(
    matrix: Tensor, rank: int, generator: torch.Generator, power: float, quick: bool
) -> tuple[Tensor, Tensor]:
    if quick:
        return spectral_factors(matrix, rank, generator, power, iterations=10, turns=10)
    return spectral_factors(matrix, rank, generator, power)


FACTORISATIONS: dict[str, Callable[[Tensor, int, torch.Generator, float, bool], tuple[Tensor, Tensor]]] = {
    "nmf": _nmf,
    "spectral": _spectral,
}
"""By the topology that uses them."""
