"""Weights in fewer bytes: half precision, and eight bits with a scale for every row.

numpy has no bfloat16, so its numbers are kept as the upper halves of float32 ones, in uint16.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ..errors import ArtifactError

VALUES: Final = ("fp32", "fp16", "bf16", "int8")
"""How values of weights may be written."""

STORED: Final = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16, "int8": np.int8}
"""The type of their array."""

_LARGEST: Final = 127


def encode(values: np.ndarray, counts: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray | None, float]:
    """Values in fewer bytes, each rounded to the nearest.

    Args:
        values: float32, one row after the other.
        counts: how many of them each row has; they add up to ``len(values)``.
        kind: one of :data:`VALUES`.

    Returns:
        The values, and for ``int8`` the rows' scales (float16, at most 1) and a factor: a weight is
        ``value * scale * factor``. Otherwise None and 1.

    Raises:
        ArtifactError: a value is too large for ``fp16``.
    """
    if kind == "fp32":
        return values, None, 1.0
    if kind == "fp16":
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise ArtifactError(
                f"--values=fp16 cannot hold weights of {float(np.abs(values).max()):.3g}; allowed are weights "
                "below 65504, or --values=bf16, int8 or fp32."
            )
        return halves, None, 1.0
    if kind == "bf16":
        bits = values.view(np.uint32)
        # To the nearest, ties to even: what is added carries into the upper half.
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), None, 1.0
    largest = np.zeros(len(counts), np.float32)
    filled = counts > 0
    if filled.any():
        starts = np.cumsum(counts) - counts
        largest[filled] = np.maximum.reduceat(np.abs(values), starts[filled])
    factor = float(largest.max(initial=0.0)) / _LARGEST or 1.0
    scales = _scales_of(largest / (_LARGEST * factor))
    steps = np.repeat(scales.astype(np.float32) * np.float32(factor), counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.where(steps > 0, np.rint(values / steps), 0)
    return np.clip(whole, -_LARGEST, _LARGEST).astype(np.int8), scales, factor


def _scales_of(exact: np.ndarray) -> np.ndarray:
    """As float16, to the nearest; upwards where that has few bits left, so that no value is cut off or lost."""
    scales = exact.astype(np.float16)
    short = (scales < exact) & (exact < np.finfo(np.float16).smallest_normal)
    scales[short] = np.nextafter(scales[short], np.float16(1))
    return scales


def decode(
    stored: np.ndarray, counts: np.ndarray, kind: str, scales: np.ndarray | None, factor: float
) -> np.ndarray:
    """The float32 values that :func:`encode` has written."""
    if kind == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    values = stored.astype(np.float32)
    if scales is not None:
        values *= np.repeat(scales.astype(np.float32) * np.float32(factor), counts)
    return values
