"""Exact uniform samples without replacement, from any number of positions and with little memory."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

LARGE: Final = 2**28
"""Populations above it are sampled block by block."""

BLOCK: Final = 2**22
"""Numbers in one block of a large population."""


def random_subset(n: int, k: int, generator: torch.Generator) -> Tensor:
    """``k`` distinct numbers below ``n``, uniform, ascending (int64).

    Needs ``n`` bytes beside them up to :data:`LARGE` and a constant above. ``torch.randperm(n)`` would
    need 8·n bytes, which is more than the dense table itself.
    """
    if n > LARGE:
        return _by_blocks(n, k, generator)
    if k > n // 2:
        left_out = random_subset(n, n - k, generator)
        keep = torch.ones(n, dtype=torch.bool)
        keep[left_out] = False
        del left_out
        return keep.nonzero().flatten()
    taken = torch.zeros(n, dtype=torch.bool)
    count = 0
    while count < k:
        taken.index_fill_(0, torch.randint(n, (k - count,), generator=generator), True)
        count = int(taken.count_nonzero())  # a sum would make int64 of every bool
    return taken.nonzero().flatten()


def _by_blocks(n: int, k: int, generator: torch.Generator) -> Tensor:
    """A uniform subset, as the uniform subsets of blocks whose sizes a uniform subset would have."""
    result = torch.empty(k, dtype=torch.int64)
    done = 0
    for first in range(0, n, BLOCK):
        size = min(BLOCK, n - first)
        count = hypergeometric(size, n - first - size, k - done, generator)
        result[done : done + count] = random_subset(size, count, generator).add_(first)
        done += count
    return result


def hypergeometric(good: int, bad: int, draws: int, generator: torch.Generator) -> int:
    """How many of ``draws`` ≤ ``good`` + ``bad`` items drawn without replacement are good; one random draw.

    By inversion of the distribution function in double precision, from the ratios of neighbouring
    probabilities, so numbers up to 2^53 are no difficulty (numpy's method, made of factorials, ends at
    10^9). What lies 12 standard deviations and 60 from the mean is left out: less than 10^-30.
    """
    low, high = max(0, draws - bad), min(draws, good)
    total = good + bad
    if low == high:
        return low
    mean = draws * good / total
    deviation = math.sqrt(mean * (bad / total) * ((total - draws) / max(1, total - 1)))
    reach = 12 * deviation + 60
    low, high = max(low, math.floor(mean - reach)), min(high, math.ceil(mean + reach))
    x = torch.arange(low, high, dtype=torch.float64)
    # log P(x + 1) - log P(x); the largest probability becomes 1.
    steps = (good - x).log() + (draws - x).log() - (x + 1).log() - (bad - draws + x + 1).log()
    logs = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
    up_to = (logs - logs.max()).exp().cumsum(0)
    point = torch.rand((), generator=generator, dtype=torch.float64) * up_to[-1]
    return low + min(int(torch.searchsorted(up_to, point, right=True)), high - low)
