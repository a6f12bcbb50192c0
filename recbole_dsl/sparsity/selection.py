"""Exact top-k and bottom-k with one tie rule: among equal scores the lowest index comes first.

``torch.topk`` leaves the choice among equal scores open, which would make a topology depend on the device and
the library version. Scores come in blocks, through which :func:`keep_lowest` and :func:`highest_positive_k`
go several times: each time 16 more bits of the k-th score are found by counting, so neither a sorted copy nor
a list of candidates is held.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ..kernels import compiled
from ..kernels import selection as loops

SCORES_PER_BLOCK: Final = 2**20
"""Scores of live weights looked at together."""

DIGIT: Final = 16
"""Bits of a score that are found in one pass; a pass counts in 2^16 bins."""

BlockScore = Callable[[int, int], Tensor]
"""Maps a range of indices, first and last + 1, to their scores (1-D)."""


def keep_lowest(marks: Tensor, scores: BlockScore, k: int, kernels: str = "auto") -> None:
    """Clear all ``marks`` (n,) bool but those of the ``k`` lowest scores; ties: lowest index first.

    ``scores``: of the indices below n, each ≥ 0 or NaN, which counts as higher than every number; asked
    for several times. ``kernels``: the setting ``dsl_kernels``. Needs memory for a block only.
    """
    n = marks.numel()
    blocks = [slice(i, min(i + SCORES_PER_BLOCK, n)) for i in range(0, n, SCORES_PER_BLOCK)]
    ranks = _Ranks(scores(0, 0).dtype, False, kernels)
    cut = _Cut.of(lambda: ((scores(b.start, b.stop), marks[b]) for b in blocks), ranks, k)
    left = cut.ties
    for b in blocks:
        left = ranks.choose(scores(b.start, b.stop), marks[b], cut.value, left)


ScoredBlock = tuple[int, Tensor, Tensor]
"""A piece of many scores: the index of its first, the scores (1-D), and which may be chosen (bool)."""


def highest_positive_k(
    blocks: Iterable[ScoredBlock], k: int, device: torch.device, kernels: str = "auto"
) -> Tensor:
    """Indices (int64, ascending) of the ``k`` highest of the scores in (0, ∞); ties: lowest index first.

    Fewer than ``k`` indices if fewer scores are in that range and may be chosen.

    Args:
        blocks: the scores in pieces in ascending order; gone through several times, so no more than a
            block and the result is held at a time. What may be chosen is overwritten.
        k: how many to choose, ≥ 0.
        device: where the scores are.
        kernels: the setting ``dsl_kernels``.
    """
    dtype = next((scores.dtype for _, scores, _ in blocks), None)
    if dtype is None:
        return torch.empty(0, dtype=torch.int64, device=device)
    ranks = _Ranks(dtype, True, kernels)
    cut = _Cut.of(lambda: ((scores, marks) for _, scores, marks in blocks), ranks, k)
    result = torch.empty(cut.chosen + 1, dtype=torch.int64, device=device)
    count, left = 0, cut.ties
    for first, scores, marks in blocks:
        left = ranks.choose(scores, marks, cut.value, left)
        count += _write_places(marks, first, result[count:], kernels)
    return result[:count]


def _write_places(marks: Tensor, first: int, out: Tensor, kernels: str) -> int:
    """Write where ``marks`` are set, counted from ``first``, into ``out``; returns how many there are."""
    if compiled(kernels, marks):
        return loops.write_places(marks, first, out)
    found = marks.nonzero().flatten()
    out[: found.numel()] = found.add_(first)
    return found.numel()


BITS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer types by their bytes, to read floating-point numbers as bits."""


@functools.cache
def _infinity(dtype: torch.dtype) -> int:
    """The bits of +∞."""
    return int(torch.tensor(torch.inf, dtype=dtype).view(BITS[dtype.itemsize]))


@dataclass(frozen=True)
class _Ranks:
    """Scores as integers that are the lower the earlier a score is chosen (see kernels/selection.py).

    ``highest``: the highest scores in (0, ∞) are chosen, else the lowest of scores ≥ 0 or NaN.
    """

    dtype: torch.dtype
    highest: bool
    kernels: str

    @property
    def bits(self) -> int:
        return 8 * self.dtype.itemsize

    @property
    def infinity(self) -> int:
        return _infinity(self.dtype)

    def count(self, scores: Tensor, marks: Tensor, shift: int, value: int, counts: Tensor) -> None:
        """Add to ``counts`` how often each digit follows ``value`` at ``shift`` in the marked ranks."""
        bits = scores.view(BITS[self.dtype.itemsize])
        if compiled(self.kernels, bits, marks):
            loops.count_digits(bits, marks, self.highest, self.infinity, shift, value, counts)
            return
        ranks, marks = self._of(bits, marks)
        if not bool(marks.all()):
            ranks = ranks[marks]
        if shift + DIGIT < self.bits:  # only those whose higher digits are the k-th's
            ranks = ranks[ranks >> (shift + DIGIT) == value]
        digits = (ranks >> shift) - (value << DIGIT)
        counts += torch.bincount(digits, minlength=counts.numel())

    def choose(self, scores: Tensor, marks: Tensor, value: int, ties: int) -> int:
        """Clear all ``marks`` but those of ranks below ``value`` and the first ``ties`` equal to it.

        Returns how many ties are left.
        """
        bits = scores.view(BITS[self.dtype.itemsize])
        if compiled(self.kernels, bits, marks):
            return loops.choose(bits, marks, self.highest, self.infinity, value, ties)
        ranks, candidates = self._of(bits, marks)
        equal = (candidates & (ranks == value)).nonzero().flatten()[:ties]
        marks.copy_(candidates & (ranks < value)).index_fill_(0, equal, True)
        return ties - equal.numel()

    def _of(self, bits: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
        """The ranks, and which of the marked scores have one."""
        if self.highest:
            return self.infinity - bits, marks & (bits > 0) & (bits < self.infinity)
        without_sign = bits & torch.iinfo(bits.dtype).max  # of -0.0 and of NaN
        return without_sign.clamp_(max=self.infinity + 1), marks


@dataclass(frozen=True)
class _Cut:
    """Which of many scores are chosen: those of ranks below ``value`` and the first ``ties`` equal to it.

    ``chosen``: how many that are.
    """

    value: int
    ties: int
    chosen: int

    @classmethod
    def of(cls, blocks: Callable[[], Iterable[tuple[Tensor, Tensor]]], ranks: _Ranks, k: int) -> _Cut:
        """The ``k`` marked scores of lowest rank, or all if there are fewer.

        ``blocks()`` gives scores and marks anew at every pass.
        """
        value, rest = 0, k
        for shift in range(ranks.bits - DIGIT, -1, -DIGIT):
            counts: Tensor | None = None
            for scores, marks in blocks():
                if counts is None:
                    counts = torch.zeros(2**DIGIT, dtype=torch.int64, device=scores.device)
                ranks.count(scores, marks, shift, value, counts)
            if counts is None:  # nothing to choose from
                return cls(0, 0, 0)
            up_to = counts.cumsum(0)
            if rest > int(up_to[-1]):  # in the first pass only
                return cls(2 ** (ranks.bits - 1) - 1, 0, int(up_to[-1]))
            digit = int(torch.searchsorted(up_to, rest))
            rest -= int(up_to[digit - 1]) if digit > 0 else 0
            value = (value << DIGIT) | digit
        return cls(value, rest, k)
