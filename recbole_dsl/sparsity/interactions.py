"""What topologies from factors know of the data: who interacted with what, and which table is whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from ..errors import ConfigError
from .factors import Factorisation, degree_normalised, scaled
from .randomness import generator_for
from .ranking import ndcg
from .targets import TensorInfo
from .topology import Factor

NORM_PER_NDCG: Final = 4.5
"""A rule of thumb for LightGCN, whose mean over layers is shorter than its embeddings; from validation runs
of single seeds on dense and on thin data, with non-negative factors. ml-100k's comparison and ablation are
what is known of it."""

ALONE: Final = 3.0
"""So many times larger are the values of a table that begins alone: LightGCN makes the rows of both of it, and
as large as in two tables they make smaller ones. From validation runs of a single seed on citeulike-t."""

BOTH: Final = frozenset({"user", "item"})

FEW_PER_ROW: Final = 10
"""Interactions of a row, on average, below which a graph says more of it than weights of its own: a rule of
thumb from citeulike-t, whose items have 4, and ml-100k, whose items have 48."""


@dataclass(frozen=True)
class Interactions:
    """Training interactions: ``users``, ``items`` (ids, same length, kept as int64) and how many there are.

    Ids are rows of the tables: below ``n_users`` and ``n_items``, padding included if it has a row.

    Raises:
        ConfigError: they are not.
    """

    users: Tensor
    items: Tensor
    n_users: int
    n_items: int
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        whole = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
        for name, ids, count in (("users", self.users, self.n_users), ("items", self.items, self.n_items)):
            if ids.ndim != 1 or ids.dtype not in whole or len(ids) != len(self.users):
                raise ConfigError(
                    f"{name} of shape {tuple(ids.shape)} and type {ids.dtype} are refused: allowed are whole "
                    f"numbers in one dimension, as many items as the {len(self.users)} users."
                )
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < count:
                raise ConfigError(
                    f"{name} from {int(ids.min())} to {int(ids.max())} are refused: allowed are rows of a "
                    f"table of {count}, so from 0 to {count - 1}."
                )
            object.__setattr__(self, name, ids.long())  # torch reads uint8 as a mask

    def role(self, tensor: TensorInfo) -> str | None:
        """``'user'`` or ``'item'`` for an embedding table with a row per user or item, else None.

        The number of rows decides, and where users and items are equally many, the name.
        """
        if tensor.kind not in ("embedding", "raw") or len(tensor.shape) != 2:
            return None
        return self.role_of_rows(tensor.name, tensor.shape[0])

    def role_of_rows(self, name: str, count: int) -> str | None:
        """The same by the name and the number of rows alone."""
        fits = {role for role, rows in (("user", self.n_users), ("item", self.n_items)) if count == rows}
        if len(fits) == 2:
            fits = {role for role in fits if role in name.lower()}
        return fits.pop() if len(fits) == 1 else None

    def factors(
        self,
        tensors: Sequence[TensorInfo],
        seed: int,
        how: Factorisation,
        among: Sequence[TensorInfo] = (),
        linear_norm: float | None = None,
    ) -> list[Factor | None]:
        """Per tensor the factor of its users or items; None where it has none.

        ``among``: all sparse tensors of the model, if these are not all (see :meth:`roles`).

        Those of tables are scaled for use as values. A matrix of ``nn.Linear`` with an input or an output for
        each item (or user), as in autoencoders, gets positions only, as its values are not those of inner
        products; with a ``linear_norm`` values as well, of that norm by item on average. Tensors of the same
        width share one factorisation, so their columns, or the other side of the matrix, mean the same.
        """
        found: list[Factor | None] = []
        for role, tensor in zip(self.roles(tensors, among), tensors, strict=True):
            side = self.side(tensor)
            if role is not None:
                found.append(Factor(self._factor(role, tensor.shape[1], seed, how)))
            elif side is not None:
                role, axis = side
                entries = self._factor(role, tensor.shape[1 - axis], seed, how)
                found.append(Factor(entries, axis == 1, as_values=linear_norm is not None, norm=linear_norm))
            else:
                found.append(None)
        return found

    def side(self, tensor: TensorInfo) -> tuple[str, int] | None:
        """Whose are the outputs (0) or inputs (1) of a matrix of ``nn.Linear``, as ``('item', 1)``, or None.

        By their number, where one side of the matrix has it; if users and items are equally many, those of
        users have them in their names.
        """
        if tensor.kind != "linear":
            return None
        known = {"user": self.n_users, "item": self.n_items}
        if self.n_users == self.n_items:
            del known["item" if "user" in tensor.name.lower() else "user"]
        fits = [(role, axis) for role, count in known.items() for axis in (0, 1) if tensor.shape[axis] == count]
        return fits[0] if len(fits) == 1 else None

    def has_factors(self, tensor: TensorInfo) -> bool:
        """Whether :meth:`factors` may say something of it."""
        return self.role(tensor) is not None or self.side(tensor) is not None

    def _factor(self, role: str, rank: int, seed: int, how: Factorisation) -> Tensor:
        users, items = self.factorise(rank, seed, how)
        return users if role == "user" else items

    def begins_in(self, tables: str) -> frozenset[str]:
        """The roles whose tables get a group's budget first, by ``dsl_init_tables``.

        With ``'auto'``, for models that propagate over the interactions, where rows of the one make up rows of
        the other: the table of fewer rows alone, if those of the other have fewer than ten interactions each.
        """
        if tables != "auto":
            return {"users": frozenset({"user"}), "items": frozenset({"item"})}.get(tables, BOTH)
        pairs = torch.unique(self.users.long() * self.n_items + self.items.long()).numel()
        fewer = "user" if self.n_users <= self.n_items else "item"
        return frozenset({fewer}) if pairs < FEW_PER_ROW * max(self.n_users, self.n_items) else BOTH

    def roles(self, tensors: Sequence[TensorInfo], among: Sequence[TensorInfo] = ()) -> list[str | None]:
        """Of tables that :meth:`factors` gives a factor: whose, ``'user'`` or ``'item'``; None of others.

        Where a table that fits, of these or ``among`` others, has the role in its name, one without it has as
        many rows by chance.
        """
        roles = [self.role(tensor) for tensor in tensors]
        named = {role for t in (*tensors, *among) if (role := self.role(t)) and role in t.name.lower()}
        return [
            None if role in named and role not in tensor.name.lower() else role
            for role, tensor in zip(roles, tensors, strict=True)
        ]

    def embeddings(
        self, rank: int, generator: torch.Generator, how: Factorisation, quick: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Factors (n_users × rank, n_items × rank), scaled for use as values (:func:`scaled`)."""
        matrix = degree_normalised(self.users, self.items, self.n_users, self.n_items)
        item_degrees = torch.bincount(matrix.col_indices(), minlength=self.n_items)
        return scaled(*how.of(matrix, rank, generator, quick), item_degrees, how.popularity)

    def trusted_norm(self, rank: int, seed: int, how: Factorisation, alone: bool = False) -> float:
        """:data:`NORM_PER_NDCG` times the NDCG@10 at which the factors rank the interactions they are made of.

        At least a tenth; :data:`ALONE` times as much for a single table. Where factors describe the data,
        training should keep what they say, and large values see to that; where they do not, it should learn,
        and from large values it learns little (the lazy regime, Chizat et al., NeurIPS 2019).
        """
        key = ("norm", rank, seed, how)
        if key not in self._cache:
            self._cache[key] = NORM_PER_NDCG * ndcg(*self.factorise(rank, seed, how), self, seed)
        return max(0.1, self._cache[key]) * (ALONE if alone else 1.0)

    def factorise(self, rank: int, seed: int, how: Factorisation) -> tuple[Tensor, Tensor]:
        """The factors of users and items, made once."""
        if (rank, seed, how) not in self._cache:
            generator = generator_for(seed, f"{how.kind}/{rank}")
            self._cache[rank, seed, how] = self.embeddings(rank, generator, how)
        return self._cache[rank, seed, how]
