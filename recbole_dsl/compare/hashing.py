"""Embedding tables composed of two small ones: the quotient–remainder trick (arXiv 1909.02107)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import ConfigError
from ..sparsity.randomness import generator_for
from ..sparsity.targets import list_tensors


class QuotientRemainder(nn.Module):
    """Row i of a table is row ⌊i / m⌋ of one small table times, element by element, row i mod m of another.

    Args:
        rows: of the whole table. buckets: m, rows of the second table, 1 ≤ m ≤ ``rows``.
        seed, purpose: of the second table's initial values, standard normal, so that products vary as much as
            the weights that they take the place of.
    """

    def __init__(self, rows: int, buckets: int, seed: int, purpose: str) -> None:
        super().__init__()
        self.rows, self.buckets, self.seed, self.purpose = rows, buckets, seed, purpose

    def forward(self, quotients: Tensor, remainders: Tensor) -> Tensor:
        """The whole table, (rows, columns)."""
        ids = torch.arange(self.rows, device=quotients.device)
        return quotients[ids // self.buckets] * remainders[ids % self.buckets]

    def right_inverse(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Initial values of both tables: the first rows of the whole one, and random ones."""
        generator = generator_for(self.seed, self.purpose)
        remainders = torch.randn(self.buckets, table.shape[1], generator=generator, dtype=table.dtype)
        return table[: -(-self.rows // self.buckets)].clone(), remainders.to(table.device)


def buckets_of(rows: int, allowed: int) -> int | None:
    """The most buckets with which the two tables have at most ``allowed`` rows together; None if none have.

    The fewest rows of two tables are about 2√rows.
    """
    fitting = [m for m in range(1, min(rows, allowed) + 1) if m + -(-rows // m) <= allowed]
    return max(fitting, default=None)


def hash_tables(model: nn.Module, names: Sequence[str], allowed: int, seed: int) -> dict[str, dict[str, int]]:
    """Replace tables of a dense model by two small ones each, in place.

    Args:
        names: of the parameters, all of two dimensions.
        allowed: bytes that all of them may take, shared out by their sizes.
        seed: of the initial values.

    Returns:
        ``quotients`` and ``remainders``, the rows of both tables, by name.

    Raises:
        ConfigError: so few bytes are not enough, or a name is no table.
    """
    tensors = {tensor.name: tensor for tensor in list_tensors(model)}
    total = sum(tensors[name].parameter.numel() for name in names)
    found: dict[str, Any] = {}
    for name in names:
        tensor = tensors[name]
        if len(tensor.shape) != 2 or len(tensor.places) != 1:
            raise ConfigError(
                f"method hash cannot take the place of {name} of shape {tensor.shape}; allowed are tables of "
                "rows and columns that one module has (set dsl_include or dsl_exclude)."
            )
        rows, columns = tensor.shape
        size = columns * tensor.parameter.element_size()
        share = int(allowed * tensor.parameter.numel() / total) // size
        buckets = buckets_of(rows, share)
        if buckets is None:
            least = min(m + -(-rows // m) for m in range(1, math.isqrt(rows) + 2))
            raise ConfigError(
                f"method hash cannot make {name} of {rows} rows as small as {share} rows; allowed are "
                f"densities that leave at least {least}."
            )
        found[name] = (tensor.places[0], rows, buckets)
    told = {}
    for name, ((module, attribute), rows, buckets) in found.items():
        composed = QuotientRemainder(rows, buckets, seed, f"hash/{name}")
        parametrize.register_parametrization(module, attribute, composed)
        told[name] = {"quotients": -(-rows // buckets), "remainders": buckets}
    return told
