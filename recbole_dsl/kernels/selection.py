"""Loops that count and choose scores by their bits, for an exact top-k without a sorted copy.

The bits of floating-point numbers ≥ 0, read as integers, are in the order of the numbers. Every score has
a *rank*, the lower the earlier it is chosen: among the lowest its bits without the sign, one more than
``infinity`` for NaN; among the highest ``infinity`` - its bits, and none for a score outside (0, ∞).
``infinity``: the bits of +∞.
"""

from __future__ import annotations

from typing import Any

from . import loop


@loop
def count_digits(
    bits: Any, marks: Any, highest: bool, infinity: int, shift: int, value: int, counts: Any
) -> None:
    """Count the 16 bits at ``shift`` of every rank whose bits above them are ``value``.

    Args:
        bits: of the scores, (n,) int16, int32 or int64. marks: (n,) bool, which of them to look at.
        counts: (2^16,) int64, added to.
    """
    without_sign = infinity | ((infinity & -infinity) - 1)
    low = value << 16
    for i in range(bits.size):
        if highest:
            rank = infinity - bits[i]
            counted = marks[i] & (bits[i] > 0) & (bits[i] < infinity)
        else:
            rank = min(bits[i] & without_sign, infinity + 1)
            counted = marks[i]
        digit = (rank >> shift) - low
        if (digit >= 0) & (digit < 65536):  # the only branch: a processor would often guess the others wrong
            counts[digit] += counted


@loop
def choose(bits: Any, marks: Any, highest: bool, infinity: int, value: int, ties: int) -> int:
    """Clear all ``marks`` but those of ranks below ``value`` and of the first ``ties`` equal to it.

    Returns how many of ``ties`` are left. Arguments as of :func:`count_digits`.
    """
    without_sign = infinity | ((infinity & -infinity) - 1)
    largest = value if ties > 0 else value - 1
    equal = 0
    for i in range(bits.size):  # without a branch, which a processor would often guess wrong
        if highest:
            rank = infinity - bits[i]
            marks[i] &= (rank > 0) & (rank < infinity) & (rank <= largest)
        else:
            rank = min(bits[i] & without_sign, infinity + 1)
            marks[i] &= rank <= largest
        equal += marks[i] & (rank == value)
    if equal <= ties:
        return ties - equal
    for i in range(bits.size):
        rank = infinity - bits[i] if highest else min(bits[i] & without_sign, infinity + 1)
        if marks[i] and rank == value:
            marks[i] = ties > 0
            ties = max(0, ties - 1)
    return ties


@loop
def write_places(marks: Any, first: int, out: Any) -> int:
    """Write ``first`` + i of every i that is marked into ``out``, which has an entry more than there are.

    Returns how many there are.
    """
    count = 0
    for i in range(marks.size):  # without a branch
        out[count] = first + i
        count += marks[i]
    return count
