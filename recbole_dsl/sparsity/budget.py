"""Integer budgets: how many weights may live, in total and in each tensor, and what bytes allow.

The rules for the sizes of what is stored are here because they need no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from ..errors import ConfigError


def budget_of_density(weights: int, density: float) -> int:
    """``density`` · ``weights`` rounded half up, at least 1 and at most ``weights``."""
    if weights < 2**53:
        return min(weights, max(1, math.floor(density * weights + 0.5)))
    return min(weights, math.floor(Fraction(repr(density)) * weights + Fraction(1, 2)))


def index_type_bytes(columns: int) -> int:
    """Bytes of one column id: 1 up to 256 columns, 2 up to 2^15, 4 up to 2^31, else 8."""
    for size, limit in ((1, 2**8), (2, 2**15), (4, 2**31)):
        if columns <= limit:
            return size
    return 8


def pointer_type_bytes(live: int) -> int:
    """Bytes of one row pointer into ``live`` weights: 4 below 2^31, else 8."""
    return 4 if live < 2**31 else 8


def index_bytes(shapes: Sequence[tuple[int, int]], live: int) -> int:
    """Bytes of the column ids and row pointers of ``live`` weights in a group of tensors (rows, columns)."""
    rows = sum(r for r, _ in shapes)
    return live * index_type_bytes(max(c for _, c in shapes)) + pointer_type_bytes(live) * (rows + 1)


def budget_of_bytes(memory: int, shapes: Sequence[tuple[int, int]], value_bytes: int = 4) -> int:
    """The most weights whose values, column ids and row pointers fit into ``memory`` bytes.

    ``shapes``: (rows, columns) of the tensors of one group. May be 0 or negative when not even the
    row pointers fit.
    """
    rows = sum(r for r, _ in shapes)
    per_weight = value_bytes + index_type_bytes(max(c for _, c in shapes))
    with_short, with_long = ((memory - size * (rows + 1)) // per_weight for size in (4, 8))  # row pointers
    return min(max(min(with_short, 2**31 - 1), with_long), sum(r * c for r, c in shapes))


def least_bytes(shapes: Sequence[tuple[int, int]], value_bytes: int = 4) -> int:
    """The fewest bytes of which :func:`budget_of_bytes` makes a weight."""
    return value_bytes + index_bytes(shapes, 1)


def bytes_of_everything(shapes: Sequence[tuple[int, int]], value_bytes: int = 4) -> int:
    """Bytes of a group of tensors (rows, columns) at density 1: values, column ids and row pointers."""
    weights = sum(r * c for r, c in shapes)
    return weights * value_bytes + index_bytes(shapes, weights)


def allocate(total: int, shares: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Split ``total`` into integers proportional to ``shares``, none above its cap, exactly.

    What a capped entry cannot take goes to the others in proportion; the last units go to the
    largest remainders (ties: first). ``total`` may not exceed ``sum(caps)``.
    """
    if total > sum(caps):
        raise ValueError(f"cannot place {total} weights into tensors that hold {sum(caps)}")
    result = [0] * len(caps)
    open_ = [i for i in range(len(caps)) if caps[i] > 0]
    left = total
    wanted = [Fraction(share) for share in shares]
    exact: dict[int, Fraction] = {}
    while open_:
        weight = sum(wanted[i] for i in open_)
        exact = {i: left * (wanted[i] / weight if weight > 0 else Fraction(1, len(open_))) for i in open_}
        full = [i for i in open_ if exact[i] >= caps[i]]
        if not full:
            break
        for i in full:
            result[i] = caps[i]
            left -= caps[i]
        open_ = [i for i in open_ if i not in full]
    for i in open_:
        result[i] = math.floor(exact[i])
        left -= result[i]
    for i in sorted(open_, key=lambda i: (result[i] - exact[i], i))[:left]:
        result[i] += 1
    return result


def erdos_renyi_shares(shapes: Sequence[Sequence[int]], kernel: bool) -> list[float]:
    """Shares of a budget by the Erdős–Rényi rule: a tensor's density ∝ Σ dims / Π dims.

    With ``kernel`` all dimensions of a convolution count (RigL, arXiv 1911.11134, ERK), otherwise
    only the first two (SET). The share of a 2-D tensor is rows + columns either way.
    """
    shares = []
    for shape in shapes:
        dims = list(shape) if kernel else list(shape[:2])
        shares.append(sum(dims) / math.prod(dims) * math.prod(shape))
    return shares


def least_score_memory(shapes: Sequence[tuple[int, int]], element_size: int, share: float = 1.0) -> int:
    """The fewest bytes that growth scores can be bounded to: one row of each tensor and their bookkeeping.

    Where ``share`` asks for all rows that may be more than all scores take, which need no bookkeeping.
    """
    one_each = sample_bytes(shapes, [1] * len(shapes), element_size)
    everything = sum(rows * cols for rows, cols in shapes) * element_size
    return one_each if _rows_of_share(shapes, share) is not None else min(everything, one_each)


def most_score_memory(shapes: Sequence[tuple[int, int]], element_size: int, share: float = 1.0) -> int:
    """Bytes of the growth scores of all rows that ``share`` asks for."""
    wanted = _rows_of_share(shapes, share)
    if wanted is None:
        return sum(rows * cols for rows, cols in shapes) * element_size
    return sample_bytes(shapes, wanted, element_size)


def split_score_memory(memory: int, least: Sequence[int], most: Sequence[int]) -> list[int]:
    """Bytes of growth scores for each of several groups, no more than ``memory`` in all.

    Each has its :func:`least_score_memory`, and of the rest a part in proportion to what it lacks to its
    :func:`most_score_memory`, which no group exceeds. ``memory`` ≥ the sum of ``least``.
    """
    lacks = [high - low for low, high in zip(least, most, strict=True)]
    rest = min(memory - sum(least), sum(lacks))
    return [low + rest * lack // max(1, sum(lacks)) for low, lack in zip(least, lacks, strict=True)]


def sample_bytes(shapes: Sequence[tuple[int, int]], counts: Sequence[int], element_size: int) -> int:
    """Bytes of the growth scores of ``counts`` rows of each tensor, of their numbers and the inverse."""
    scored = sum(n * (cols * element_size + 8) for n, (_, cols) in zip(counts, shapes, strict=True))
    return scored + 4 * sum(rows for rows, _ in shapes)


def scored_row_counts(
    shapes: Sequence[tuple[int, int]], element_size: int, memory: int | None, share: float = 1.0
) -> list[int] | None:
    """How many rows of each tensor are scored, None for all: both bounds hold, and at least one row is.

    ``element_size``: bytes of a score; ``memory``: bytes that scores may take, None for no bound;
    ``share``: of every tensor's rows, in (0, 1], rounded half up.

    Raises:
        ConfigError: not even one row of each tensor fits.
    """
    wanted = _rows_of_share(shapes, share)
    if wanted is None:
        return sampled_row_counts(shapes, element_size, memory)
    if memory is None or sample_bytes(shapes, wanted, element_size) <= memory:
        return wanted
    within = _counts_within(shapes, element_size, memory, share)
    return [min(pair) for pair in zip(wanted, within, strict=True)]


def _rows_of_share(shapes: Sequence[tuple[int, int]], share: float) -> list[int] | None:
    """Rows of each tensor that ``share`` asks for, at least one; None if that is all of them."""
    wanted = [min(rows, max(1, math.floor(share * rows + 0.5))) for rows, _ in shapes]
    return None if wanted == [rows for rows, _ in shapes] else wanted


def sampled_row_counts(
    shapes: Sequence[tuple[int, int]], element_size: int, memory: int | None
) -> list[int] | None:
    """How many rows of each tensor growth scores of ``memory`` bytes allow, None if all.

    Raises:
        ConfigError: not even one row of each tensor fits.
    """
    weights = sum(rows * cols for rows, cols in shapes)
    if memory is None or weights * element_size <= memory:
        return None
    return _counts_within(shapes, element_size, memory)


def _counts_within(
    shapes: Sequence[tuple[int, int]], element_size: int, memory: int, share: float = 1.0
) -> list[int]:
    left = memory - sample_bytes(shapes, [1] * len(shapes), element_size)
    if left < 0:
        raise ConfigError(
            f"dsl_growth_memory={memory} bytes is too small to score even one row of each sparse "
            f"tensor with shapes {list(shapes)}; allowed is at least "
            f"{least_score_memory(shapes, element_size, share)} bytes."
        )
    more = sum((rows - 1) * (cols * element_size + 8) for rows, cols in shapes)
    return [1 + (rows - 1) * left // max(1, more) for rows, _ in shapes]
