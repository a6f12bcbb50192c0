"""Schedules of the update ratio α: the share of live weights replaced at most in one update.

Source: DSL, arXiv 2402.02855, Eq. 8 (cosine); RigL, arXiv 1911.11134 (cosine, linear, constant).
"""

from __future__ import annotations

import math
from collections.abc import Callable


def cosine(progress: float) -> float:
    """1 at progress 0, 0 at progress 1, along half a cosine."""
    return (1.0 + math.cos(math.pi * progress)) / 2.0


def linear(progress: float) -> float:
    """1 at progress 0, 0 at progress 1, along a line."""
    return 1.0 - progress


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
}


def update_ratio(schedule: str, step: int, end: int, ratio: float, ratio_min: float) -> float:
    """α at optimizer step ``step`` (1-based) of an exploration that ends at step ``end``.

    Returns ``ratio_min + (ratio - ratio_min) · schedule(step / end)``, a number in
    [``ratio_min``, ``ratio``], and exactly these where the schedule is 0 or 1.
    """
    share = SCHEDULES[schedule](min(step / end, 1.0))
    return ratio * share + ratio_min * (1.0 - share)
