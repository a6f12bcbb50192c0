"""Integer budgets: how many weights may live, in total and in each tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence


def budget_of_density(weights: int, density: float) -> int:
    """``density`` · ``weights`` rounded half up, at least 1 and at most ``weights``."""
    return min(weights, max(1, math.floor(density * weights + 0.5)))


def index_type_bytes(columns: int) -> int:
    """Bytes of one column id: 1 up to 256 columns, 2 up to 2^15, 4 up to 2^31, else 8."""
    for size, limit in ((1, 2**8), (2, 2**15), (4, 2**31)):
        if columns <= limit:
            return size
    return 8


def budget_of_bytes(memory: int, shapes: Sequence[tuple[int, int]], value_bytes: int = 4) -> int:
    """The most weights whose values, column ids and row pointers fit into ``memory`` bytes.

    ``shapes``: (rows, columns) of the tensors of one group. May be 0 or negative when not even the
    row pointers fit.
    """
    rows = sum(r for r, _ in shapes)
    per_weight = value_bytes + index_type_bytes(max(c for _, c in shapes))
    budget = (memory - 4 * (rows + 1)) // per_weight
    if budget >= 2**31:
        budget = (memory - 8 * (rows + 1)) // per_weight
    return min(budget, sum(r * c for r, c in shapes))


def bytes_of_everything(shapes: Sequence[tuple[int, int]], value_bytes: int = 4) -> int:
    """Bytes of a group of tensors (rows, columns) at density 1: values, column ids and row pointers."""
    weights = sum(r * c for r, c in shapes)
    pointer = 4 if weights < 2**31 else 8
    per_weight = value_bytes + index_type_bytes(max(c for _, c in shapes))
    return weights * per_weight + pointer * (1 + sum(r for r, _ in shapes))


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
    exact: dict[int, float] = {}
    while open_:
        weight = sum(shares[i] for i in open_)
        exact = {i: left * (shares[i] / weight if weight > 0 else 1 / len(open_)) for i in open_}
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
