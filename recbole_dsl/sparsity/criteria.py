"""Which live weights are dropped and which dead positions are grown.

A criterion is one pure function and one row in :data:`DROP_CRITERIA` or :data:`GROWTH_CRITERIA`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .selection import SCORES_PER_BLOCK, BlockScore, keep_lowest


@dataclass(frozen=True)
class DropContext:
    """What a drop criterion may look at, all 1-D and in the order of the live positions.

    ``values`` and ``gradients`` have one entry per live weight (``gradients`` may be None when no
    backward pass reached the group); ``k`` is the number to drop, ``threshold`` a magnitude > 0,
    ``kernels`` the setting ``dsl_kernels``. ``row_pointers`` (rows of all tensors + 1,): where each row's
    live weights start, the last one their number. ``candidates``: bool, which may be dropped (None: all); they
    are overwritten.
    """

    values: Tensor
    gradients: Tensor | None
    k: int
    row_pointers: Tensor
    threshold: float | None = None
    kernels: str = "auto"
    candidates: Tensor | None = None

    def marks(self) -> Tensor:
        """Bool, one per live weight: those that may be dropped."""
        return torch.ones_like(self.values, dtype=torch.bool) if self.candidates is None else self.candidates


@dataclass(frozen=True)
class Drop:
    """``marks`` (bool, one per live weight) of the dropped ones, and the ``strength`` of a range of them.

    The strength, ≥ 0 or NaN, orders the dropped ones: when too few positions can be grown, the strongest
    stay. Marks and blocks of strength take a byte per live weight, where indices and scores would take 12.
    """

    marks: Tensor
    strength: BlockScore


def _magnitude(values: Tensor) -> BlockScore:
    return lambda first, last: values[first:last].abs()


def _lowest(context: DropContext, strength: BlockScore, k: int) -> Drop:
    marks = context.marks()
    keep_lowest(marks, strength, k, context.kernels)
    return Drop(marks, strength)


def drop_magnitude(context: DropContext) -> Drop:
    """The k live weights of smallest |w| (DSL §3.3; SET and RigL use the same score)."""
    return _lowest(context, _magnitude(context.values), context.k)


def drop_row_magnitude(context: DropContext) -> Drop:
    """The k live weights of smallest |w| / (root mean square of the live weights of their row).

    By |w| alone rows that are seldom trained lose their weights to those that often are, whose weights
    have moved further from their small initial values.
    """
    return _lowest(context, _share_of_row(context.values, context.row_pointers), context.k)


def _share_of_row(values: Tensor, row_pointers: Tensor) -> BlockScore:
    """|w| / RMS of its row, block by block; 0 in rows of zeros."""
    dtype = torch.promote_types(values.dtype, torch.float32)

    def strength(first: int, last: int) -> Tensor:
        magnitudes = values[first:last].abs().to(dtype)
        if first == last:
            return magnitudes
        low = int(torch.searchsorted(row_pointers, first, right=True)) - 1
        high = int(torch.searchsorted(row_pointers, last))
        pointers = row_pointers[low : high + 1].long()
        start, end = int(pointers[0]), int(pointers[-1])  # of whole rows
        lengths = pointers.diff()
        squares = torch.segment_reduce(values[start:end].to(dtype).square(), "sum", offsets=pointers - start)
        rms = squares.div_(lengths.clamp(min=1)).sqrt_().clamp_(min=torch.finfo(dtype).tiny)
        row = torch.repeat_interleave(lengths)[first - start : last - start]
        return magnitudes.div_(rms.index_select(0, row))

    return strength


def drop_set(context: DropContext) -> Drop:
    """Half of k among the smallest positive, half among the largest negative weights.

    SET, Mocanu et al., Nature Communications 2018. Zero counts as positive; for odd k the positive
    side gives one more; when a side runs out, the other gives the rest.
    """
    k, strength = context.k, _magnitude(context.values)
    positive = context.marks()
    negative = (context.values < 0).logical_and_(positive)
    positive.logical_xor_(negative)
    from_negative = min(k // 2, int(negative.count_nonzero()))
    from_positive = min(k - from_negative, int(positive.count_nonzero()))
    keep_lowest(negative, strength, k - from_positive, context.kernels)
    keep_lowest(positive, strength, from_positive, context.kernels)
    return Drop(positive.logical_or_(negative), strength)


def drop_taylor(context: DropContext) -> Drop:
    """The k live weights of smallest |w · g|, g the last step's gradient (Molchanov et al. 2017)."""
    values, gradients = context.values, context.gradients
    if gradients is None:
        return drop_magnitude(context)

    def strength(first: int, last: int) -> Tensor:
        return (values[first:last] * gradients[first:last]).abs()

    return _lowest(context, strength, context.k)


def drop_threshold(context: DropContext) -> Drop:
    """The live weights with |w| below the threshold, the smallest first, at most k."""
    assert context.threshold is not None
    strength, marks = _magnitude(context.values), context.marks()
    for first in range(0, marks.numel(), SCORES_PER_BLOCK):
        last = min(first + SCORES_PER_BLOCK, marks.numel())
        marks[first:last] &= strength(first, last) < context.threshold
    k = min(context.k, int(marks.count_nonzero()))
    keep_lowest(marks, strength, k, context.kernels)
    return Drop(marks, strength)


DROP_CRITERIA: dict[str, Callable[[DropContext], Drop]] = {
    "magnitude": drop_magnitude,
    "row_magnitude": drop_row_magnitude,
    "set": drop_set,
    "taylor": drop_taylor,
    "threshold": drop_threshold,
}


@dataclass(frozen=True)
class GrowthContext:
    """What a growth criterion may look at; one entry per position of a block of scored positions.

    ``gradients``: sum of the dense gradients over the growth window (None if the criterion needs
    none); ``count``: number of positions; ``ever_live``: bool, whether a position has been
    live before (None without an exploration record); ``generator``: a CPU generator of our own.
    """

    gradients: Tensor | None
    count: int
    ever_live: Tensor | None
    generator: torch.Generator


def grow_gradient(context: GrowthContext) -> Tensor:
    """|sum of the gradients over the growth window|."""
    assert context.gradients is not None
    return context.gradients.abs()


def grow_random(context: GrowthContext) -> Tensor:
    """A uniform draw from (0, 1] per position."""
    return 1.0 - torch.rand(context.count, generator=context.generator, dtype=torch.float64)


def grow_random_never_live(context: GrowthContext) -> Tensor:
    """A uniform draw per position, positions that never lived before all others."""
    assert context.ever_live is not None
    return grow_random(context) + (~context.ever_live.cpu()).double()


def relative_to_columns(scores: Tensor, norms: Tensor, power: float) -> Tensor:
    """``scores`` of whole rows (rows × columns,), divided by ``norms`` (columns,) to the ``power``.

    ``norms`` are those of the columns over all scored rows. The columns of a Linear's weight are its inputs,
    and where those are items, an item's gradient grows with its interactions: at power 0 popular items grow
    most, at 1 all inputs count the same. Columns without any score keep their zeros. Overwrites
    ``scores``.
    """
    columns = scores.view(-1, norms.numel())
    return columns.div_(norms.clamp(min=torch.finfo(norms.dtype).tiny).pow_(power)).view(-1)


def relative_to_rows(scores: Tensor, columns: int, power: float) -> Tensor:
    """``scores`` of whole rows (rows × columns,), divided by the norm of their row to the ``power``.

    Power 0 leaves gradients as they are, so rows that are often trained grow most; 1 makes all rows
    equal. Sums over n steps whose signs are random grow with √n, so at ½ chance favours no row. Rows
    without any score keep their zeros. Overwrites ``scores``.
    """
    rows = scores.view(-1, columns)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows.div_(norms.clamp_(min=torch.finfo(scores.dtype).tiny).pow_(power)).view(-1)


@dataclass(frozen=True)
class GrowthCriterion:
    """A row of the growth table.

    ``score`` maps a :class:`GrowthContext` to one score per position (only scores > 0 are grown).
    ``window``: a fixed length of the growth window in steps, or None for the configured one.
    ``keeps_scores``: after an update the scores decay by ``grow_momentum`` instead of vanishing.
    """

    score: Callable[[GrowthContext], Tensor]
    needs_gradient: bool = True
    needs_record: bool = False
    window: int | None = None
    keeps_scores: bool = False


GROWTH_CRITERIA: dict[str, GrowthCriterion] = {
    "accumulated_gradient": GrowthCriterion(grow_gradient),
    "last_gradient": GrowthCriterion(grow_gradient, window=1),
    "momentum": GrowthCriterion(grow_gradient, keeps_scores=True),
    "random": GrowthCriterion(grow_random, needs_gradient=False),
    "random_never_live": GrowthCriterion(grow_random_never_live, needs_gradient=False, needs_record=True),
}
