"""Initial topologies: which positions of a group are live before the first step.

A topology is one pure function of a :class:`TopologyContext` and one row in :data:`TOPOLOGIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ..errors import ConfigError
from .budget import allocate, erdos_renyi_shares
from .sampling import random_subset
from .selection import BITS, keep_lowest

ROWS_PER_BLOCK: Final = 2**12
"""Rows of a factor whose entries are ranked together."""


@dataclass(frozen=True)
class Factor:
    """What the interactions say of a tensor.

    ``entries``: (users or items × columns); ``of_columns``: the tensor's columns are users or items, so it has
    the shape of the entries transposed; ``as_values``: they may serve as initial values as well; ``norm``: by
    which they are multiplied then, if not by the context's.
    """

    entries: Tensor
    of_columns: bool = False
    as_values: bool = True
    norm: float | None = None

    @property
    def takes_norm(self) -> bool:
        """Whether its entries as values are multiplied by the context's norm."""
        return self.as_values and self.norm is None


@dataclass(frozen=True)
class TopologyContext:
    """What an initial topology may look at.

    ``shapes``: the full shapes of the group's tensors; ``budget``: live weights of the group;
    ``initial``: the tensors' initial values (2-D views, rows × columns); ``factors``: what the data say of
    each tensor, or None where they say nothing (only used by ``nmf`` and ``spectral``; None altogether without
    data); ``norm``: by which entries that serve as values are multiplied; ``later``: per tensor
    whether its entries are chosen only when the factors of the others are used up (empty: none);
    ``generator``: a CPU generator of our own.
    """

    shapes: Sequence[Sequence[int]]
    budget: int
    initial: Sequence[Tensor]
    factors: Sequence[Factor | None] | None
    generator: torch.Generator
    norm: float = 1.0
    later: Sequence[bool] = ()

    @property
    def weights(self) -> int:
        """Number of positions of the group."""
        return sum(t.numel() for t in self.initial)


@dataclass(frozen=True)
class Topology:
    """``live``: ``budget`` flat positions (int64, ascending); ``values``: theirs, if it has any, and their
    rows' ``norm``; ``proposes``: per tensor, whether its values are its factor's, not its initial ones (empty:
    none are)."""

    live: Tensor
    values: Tensor | None = None
    norm: float | None = None
    proposes: Sequence[bool] = ()


def random(context: TopologyContext) -> Topology:
    """Positions drawn uniformly from the whole group."""
    return Topology(random_subset(context.weights, context.budget, context.generator))


def _per_tensor(context: TopologyContext, kernel: bool) -> Topology:
    sizes = [t.numel() for t in context.initial]
    counts = allocate(context.budget, erdos_renyi_shares(context.shapes, kernel), sizes)
    parts, start = [], 0
    for size, count in zip(sizes, counts, strict=True):
        parts.append(start + random_subset(size, count, context.generator))
        start += size
    return Topology(torch.cat(parts))


def erdos_renyi(context: TopologyContext) -> Topology:
    """Random positions, the budget split over the tensors by the Erdős–Rényi rule (SET)."""
    return _per_tensor(context, kernel=False)


def erdos_renyi_kernel(context: TopologyContext) -> Topology:
    """Random positions, split by the Erdős–Rényi-kernel rule (RigL, arXiv 1911.11134)."""
    return _per_tensor(context, kernel=True)


def aligned(context: TopologyContext) -> Topology:
    """The same columns in every row: the first ones, as a narrow model, and room to leave them.

    Inner products of two sparse rows see only the columns both have; here they have the same.
    Column by column over all rows of all tensors, so the last column is filled for the first rows.
    """
    shapes = [table.shape for table in context.initial]
    full, left = 0, context.budget  # columns that are filled, and what is left for the next
    while left >= (size := sum(rows for rows, cols in shapes if cols > full)) > 0:
        full, left = full + 1, left - size
    live, start = [], 0
    for rows, cols in shapes:
        longer = min(rows, left) if cols > full else 0  # rows that have one more
        left -= longer
        firsts = torch.arange(start, start + rows * cols, cols)
        for some, width in ((firsts[:longer], full + 1), (firsts[longer:], min(full, cols))):
            live.append((some[:, None] + torch.arange(width)).flatten())
        start += rows * cols
    return Topology(torch.cat(live))


def magnitude(context: TopologyContext) -> Topology:
    """The largest initial values by |w| over the whole group; ties: lowest position first."""
    sizes = [table.numel() for table in context.initial]
    marks = torch.ones(sum(sizes), dtype=torch.bool)
    values = [table.detach().reshape(-1) for table in context.initial]
    keep_lowest(marks, lambda first, last: _reversed(_between(values, first, last)), context.budget)
    return Topology(marks.nonzero().flatten())


def _between(values: Sequence[Tensor], first: int, last: int) -> Tensor:
    """Entries ``first`` … ``last`` - 1 of 1-D tensors one after the other, on the CPU."""
    parts, start = [], 0
    for some in values:
        parts.append(some[max(0, first - start) : max(0, last - start)].cpu())
        start += some.numel()
    return torch.cat(parts)


def _reversed(numbers: Tensor) -> Tensor:
    """Numbers ≥ 0 that are the lower the larger |x| is, and NaN where it is; none is rounded.

    Floating-point numbers ≥ 0 are in the order of their bits.
    """
    bits = numbers.abs().view(BITS[numbers.itemsize])
    infinity = torch.tensor(torch.inf, dtype=numbers.dtype).view(bits.dtype)
    return torch.where(numbers.isnan(), numbers, (infinity - bits).view(numbers.dtype))


def of_factors(context: TopologyContext) -> Topology:
    """The entries of largest absolute value of the factors of the interactions, normalised by user or item.

    Those of a user or item are divided by their Euclidean norm, so they compete with those of all others
    on equal terms; those of tensors that come ``later`` get what the others leave. Where fewer entries are
    not zero than the budget allows, the rest is drawn at random. A tensor without factors gets its share of the
    budget by size, at random positions. ``values`` are the factors' entries times their own norm or else
    ``norm``, if these may serve as values, and else the initial ones.

    Raises:
        ConfigError: there are no interactions to factorise.
    """
    if context.factors is None:
        raise ConfigError(
            "dsl_init='nmf' and 'spectral' need the interactions of users and items, which are not there; "
            "allowed without them are 'random', 'er', 'erk', 'aligned' and 'magnitude'."
        )
    known = [f is not None for f in context.factors]
    sizes = [t.numel() for t in context.initial]
    shares = _by_size(context.budget, sizes, known)
    ranks = torch.empty(context.weights, dtype=torch.float32)
    later = context.later or [False] * len(sizes)
    for factor, table, part, after in zip(
        context.factors, context.initial, ranks.split(sizes), later, strict=True
    ):
        _rank_entries(factor, part.view(table.shape), context.generator)
        if after:
            part += 1
    live = torch.zeros(context.weights, dtype=torch.bool)
    for kind, share in shares.items():
        if share == 0:
            continue
        marks = torch.cat([torch.full((n,), k is kind) for n, k in zip(sizes, known, strict=True)])
        keep_lowest(marks, lambda first, last: ranks[first:last], share, "torch")
        live |= marks
    chosen = torch.cat(
        [
            _proposed(factor, table, mine, context.norm)
            for factor, table, mine in zip(context.factors, context.initial, live.split(sizes), strict=True)
        ]
    )
    proposes = [f is not None and f.as_values for f in context.factors]
    norm = context.norm if any(f is not None and f.takes_norm for f in context.factors) else None
    return Topology(live.nonzero().flatten(), chosen.to(context.initial[0].dtype), norm, proposes)


def _proposed(factor: Factor | None, initial: Tensor, mine: Tensor, norm: float) -> Tensor:
    """Values of a tensor where ``mine`` (flat, bool) says."""
    if factor is None or not factor.as_values:
        return initial.detach().cpu().reshape(-1)[mine]
    entries = factor.entries.T if factor.of_columns else factor.entries
    return (norm if factor.norm is None else factor.norm) * entries.reshape(-1)[mine]


def _rank_entries(factor: Factor | None, ranks: Tensor, generator: torch.Generator) -> None:
    """Write into ``ranks`` (rows × columns of a tensor) 1 - |entry| / norm of its user or item.

    And draws from [2, 3] where there is nothing.
    """
    if factor is None:
        ranks.copy_(2 + torch.rand(ranks.shape, generator=generator))
        return
    by_entity = ranks.T if factor.of_columns else ranks
    for some, part in zip(factor.entries.split(ROWS_PER_BLOCK), by_entity.split(ROWS_PER_BLOCK), strict=True):
        share = torch.nn.functional.normalize(some.double(), dim=1).abs_()
        part.copy_((1 - share).clamp_min_(0))
        silent = share == 0
        part[silent] = 2 + torch.rand(int(silent.sum()), generator=generator, dtype=part.dtype)


def _by_size(budget: int, sizes: Sequence[int], known: Sequence[bool]) -> dict[bool, int]:
    """The budget of the tensors with factors (True) and of those without (False)."""
    caps = [sum(n for n, k in zip(sizes, known, strict=True) if k is kind) for kind in (True, False)]
    with_factors, without = allocate(budget, caps, caps)
    return {True: with_factors, False: without}


TOPOLOGIES: dict[str, Callable[[TopologyContext], Topology]] = {
    "random": random,
    "er": erdos_renyi,
    "erk": erdos_renyi_kernel,
    "aligned": aligned,
    "magnitude": magnitude,
    "nmf": of_factors,
    "spectral": of_factors,
}
