"""Exact top-k and bottom-k with one tie rule: among equal scores the lowest index comes first.

:func:`lowest_k` and :func:`highest_k` take a whole tensor. What an update chooses from comes in blocks,
through which :func:`keep_lowest` and :func:`highest_positive_k` go several times: each time 16 more bits
of the k-th score are found by counting, so neither a sorted copy nor a list of candidates is held.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

SCORES_PER_BLOCK: Final = 2**20
"""Scores of live weights looked at together."""

DIGIT: Final = 16
"""Bits of a score that are found in one pass; a pass counts in 2^16 bins."""

BlockScore = Callable[[int, int], Tensor]
"""Maps a range of indices, first and last + 1, to their scores (1-D)."""


def lowest_k(scores: Tensor, k: int) -> Tensor:
    """Indices (int64, ascending) of the ``k`` lowest of the 1-D ``scores``; ties: lowest index first.

    NaN counts as higher than every number. ``torch.topk`` leaves the choice among equal scores open,
    which would make a topology depend on the device and the library version.
    """
    n = scores.numel()
    if k <= 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    if k >= n:
        return torch.arange(n, device=scores.device)
    cut = torch.kthvalue(scores, k).values  # sorts NaN last
    if bool(cut.isnan()):
        below, ties = (~scores.isnan()).nonzero().flatten(), scores.isnan().nonzero().flatten()
    else:
        below, ties = (scores < cut).nonzero().flatten(), (scores == cut).nonzero().flatten()
    return torch.cat([below, ties[: k - below.numel()]]).sort().values


def highest_k(scores: Tensor, k: int) -> Tensor:
    """Indices (int64, ascending) of the ``k`` highest of the 1-D ``scores``; ties: lowest index first.

    NaN counts as lower than every number.
    """
    return lowest_k(-scores, k)


def keep_lowest(marks: Tensor, scores: BlockScore, k: int) -> None:
    """Clear all ``marks`` (n,) bool but those of the ``k`` lowest scores; ties: lowest index first.

    ``scores``: of the indices below n, each ≥ 0 or NaN, which counts as higher than every number; asked
    for several times. Needs memory for a block only.
    """
    n = marks.numel()
    blocks = [slice(i, min(i + SCORES_PER_BLOCK, n)) for i in range(0, n, SCORES_PER_BLOCK)]

    def order(block: slice) -> Tensor:
        return _order(scores(block.start, block.stop))

    def marked() -> Iterator[Tensor]:
        for b in blocks:
            yield order(b) if bool(marks[b].all()) else order(b)[marks[b]]

    choose = _Cut.of(marked, 8 * scores(0, 0).element_size(), k).chooser()
    for b in blocks:
        marks[b] = choose(order(b), marks[b])


def highest_positive_k(blocks: Iterable[tuple[int, Tensor]], k: int, device: torch.device) -> Tensor:
    """Indices (int64, ascending) of the ``k`` highest of the scores in (0, ∞); ties: lowest index first.

    Fewer than ``k`` indices if fewer scores are in that range.

    Args:
        blocks: the scores in pieces, each (index of its first score, 1-D scores), in ascending order;
            gone through several times, so no more than a block and the result is held at a time.
        k: how many to choose, ≥ 0.
        device: where the scores are.
    """
    dtype = next((scores.dtype for _, scores in blocks), None)
    if dtype is None:
        return torch.empty(0, dtype=torch.int64, device=device)
    infinity = _infinity(dtype)

    def ordered() -> Iterator[tuple[int, Tensor, Tensor]]:
        """Blocks as (first index, integers that are the lower the higher the score is, those in range)."""
        for first, scores in blocks:
            yield first, infinity - _order(scores), (scores > 0) & (scores < torch.inf)

    cut = _Cut.of(lambda: (order[inside] for _, order, inside in ordered()), 8 * dtype.itemsize, k)
    result = torch.empty(cut.chosen, dtype=torch.int64, device=device)
    count, choose = 0, cut.chooser()
    for first, order, inside in ordered():
        found = choose(order, inside).nonzero().flatten()
        result[count : count + found.numel()] = found.add_(first)
        count += found.numel()
    return result


_BITS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer types by their bytes, to read floating-point numbers as bits."""


@functools.cache
def _infinity(dtype: torch.dtype) -> int:
    """The bits of +∞."""
    return int(torch.tensor(torch.inf, dtype=dtype).view(_BITS[dtype.itemsize]))


def _order(scores: Tensor) -> Tensor:
    """Integers in the order of ``scores``, which are ≥ 0 or NaN; all NaN have the highest.

    The bits of floating-point numbers of one sign are in the order of the numbers.
    """
    bits = scores.view(_BITS[scores.dtype.itemsize])
    without_sign = bits & torch.iinfo(bits.dtype).max  # of -0.0 and of NaN
    return without_sign.clamp_(max=_infinity(scores.dtype) + 1)


@dataclass(frozen=True)
class _Cut:
    """Which of many integers are chosen: those below ``value`` and the first ``ties`` equal to it.

    ``chosen``: how many that are.
    """

    value: int
    ties: int
    chosen: int

    @classmethod
    def of(cls, blocks: Callable[[], Iterable[Tensor]], bits: int, k: int) -> _Cut:
        """The ``k`` lowest, or all if there are fewer, of integers of type int16, 32 or 64.

        ``blocks()`` gives them anew at every pass, each in [0, 2^(``bits`` - 1) - 1).
        """
        value, rest = 0, k
        for shift in range(bits - DIGIT, -1, -DIGIT):
            counts: Tensor | None = None
            for block in blocks():
                if shift < bits - DIGIT:  # only those whose higher digits are the k-th's
                    block = block[block >> (shift + DIGIT) == value]
                digits = (block >> shift) - (value << DIGIT)
                found = torch.bincount(digits, minlength=2**DIGIT)
                counts = found if counts is None else counts.add_(found)
            if counts is None:  # nothing to choose from
                return cls(0, 0, 0)
            up_to = counts.cumsum(0)
            if rest > int(up_to[-1]):  # in the first pass only
                return cls(2 ** (bits - 1) - 1, 0, int(up_to[-1]))
            digit = int(torch.searchsorted(up_to, rest))
            rest -= int(up_to[digit - 1]) if digit > 0 else 0
            value = (value << DIGIT) | digit
        return cls(value, rest, k)

    def chooser(self) -> Callable[[Tensor, Tensor], Tensor]:
        """A function that chooses from the blocks one after the other.

        It maps the integers of a block, and which of them there are to choose from (bool), to those
        that are chosen (bool).
        """
        left = self.ties

        def choose(block: Tensor, candidates: Tensor) -> Tensor:
            nonlocal left
            chosen = candidates & (block < self.value)
            ties = (candidates & (block == self.value)).nonzero().flatten()[:left]
            left -= ties.numel()
            return chosen.index_fill_(0, ties, True)

        return choose
