"""How a cost grows: exponents of power laws, and a part that grows beside one that does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PowerFit:
    """``cost ∝ size ** exponent`` by least squares of the logarithms.

    ``decades``: log10 of the largest over the smallest size; ``r2``: share of the variance explained;
    ``points``: their number.
    """

    exponent: float
    r2: float
    decades: float
    points: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def power_fit(sizes: Sequence[float], costs: Sequence[float]) -> PowerFit | None:
    """The exponent of ``costs`` in ``sizes`` (both > 0); None with fewer than two different sizes."""
    if len(set(sizes)) < 2:
        return None
    x, y = np.log10(np.asarray(sizes, float)), np.log10(np.asarray(costs, float))
    slope, intercept = np.polyfit(x, y, 1)
    spread = float(((y - y.mean()) ** 2).sum())
    left = float(((y - slope * x - intercept) ** 2).sum())
    return PowerFit(float(slope), 1 - left / spread if spread else 1.0, float(np.ptp(x)), len(sizes))


@dataclass(frozen=True)
class AffineFit:
    """``cost = slope · size + fixed``, relative errors weighed equally; neither is negative."""

    slope: float
    fixed: float

    def at(self, size: float) -> float:
        """The cost at ``size``."""
        return self.slope * size + self.fixed

    def grows(self, size: float) -> float:
        """Share of the cost at ``size`` that grows with it."""
        total = self.at(size)
        return self.slope * size / total if total else 0.0


def affine_fit(sizes: Sequence[float], costs: Sequence[float]) -> AffineFit:
    """Least squares of the relative errors of ``costs``, all > 0."""
    x, y = np.asarray(sizes, float), np.asarray(costs, float)
    slope, fixed = np.linalg.lstsq(np.stack([x / y, 1 / y], 1), np.ones_like(y), rcond=None)[0]
    if fixed < 0 or slope < 0:  # on the border one of the two is zero
        ratios = x / y
        alone = AffineFit(float(ratios.sum() / (ratios**2).sum()), 0.0)
        return alone if fixed < 0 else AffineFit(0.0, float((1 / y).sum() / (1 / y**2).sum()))
    return AffineFit(float(slope), float(fixed))
