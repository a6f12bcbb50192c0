"""Which live weights are dropped and which dead positions are grown.

A criterion is one pure function and one row in :data:`DROP_CRITERIA` or :data:`GROWTH_CRITERIA`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .selection import lowest_k


@dataclass(frozen=True)
class DropContext:
    """What a drop criterion may look at, all 1-D and in the order of the live positions.

    ``values`` and ``gradients`` have one entry per live weight (``gradients`` may be None when no
    backward pass reached the group); ``k`` is the number to drop, ``threshold`` a magnitude > 0.
    """

    values: Tensor
    gradients: Tensor | None
    k: int
    threshold: float | None = None


@dataclass(frozen=True)
class Drop:
    """``indices`` (int64, ascending) of dropped live weights, and every live weight's ``strength``.

    The strength orders the dropped ones: when too few positions can be grown, the strongest stay.
    """

    indices: Tensor
    strength: Tensor


def drop_magnitude(context: DropContext) -> Drop:
    """The k live weights of smallest |w| (DSL §3.3; SET and RigL use the same score)."""
    strength = context.values.abs()
    return Drop(lowest_k(strength, context.k), strength)


def drop_set(context: DropContext) -> Drop:
    """Half of k among the smallest positive, half among the largest negative weights.

    SET, Mocanu et al., Nature Communications 2018. Zero counts as positive; for odd k the positive
    side gives one more; when a side runs out, the other gives the rest.
    """
    k, strength = context.k, context.values.abs()
    negative = (context.values < 0).nonzero().flatten()
    positive = (~(context.values < 0)).nonzero().flatten()
    from_negative = min(k // 2, negative.numel())
    from_positive = min(k - from_negative, positive.numel())
    indices = torch.cat(
        [
            positive[lowest_k(strength[positive], from_positive)],
            negative[lowest_k(strength[negative], k - from_positive)],
        ]
    )
    return Drop(indices.sort().values, strength)


def drop_taylor(context: DropContext) -> Drop:
    """The k live weights of smallest |w · g|, g the last step's gradient (Molchanov et al. 2017)."""
    gradients = context.gradients
    strength = context.values.abs() if gradients is None else (context.values * gradients).abs()
    return Drop(lowest_k(strength, context.k), strength)


def drop_threshold(context: DropContext) -> Drop:
    """The live weights with |w| below the threshold, the smallest first, at most k."""
    assert context.threshold is not None
    strength = context.values.abs()
    below = int((strength < context.threshold).sum())
    return Drop(lowest_k(strength, min(context.k, below)), strength)


DROP_CRITERIA: dict[str, Callable[[DropContext], Drop]] = {
    "magnitude": drop_magnitude,
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
