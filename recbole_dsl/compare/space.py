"""A search space in the form of RecBole's hyper-parameter files, and the points of it that are tried.

The points are drawn once and are the same for every method, so all have the same chances. RecBole's own tuning
proposes other points to every method, and needs hyperopt.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..errors import ConfigError

_NUMBERS: Final = {"uniform": (2, 1e300), "loguniform": (2, 700.0), "quniform": (3, 1e300)}
"""Kinds with bounds: how many numbers they have, and the largest of these, so that what is drawn is a number
(those of ``loguniform`` are exponents of e)."""


@dataclass(frozen=True)
class Dimension:
    """A setting and its values.

    ``kind``: ``choice`` of ``values``; or, with numbers as ``values``, ``uniform`` (low, high), ``loguniform``
    (natural logarithms of low and high), ``quniform`` (low, high, step).
    """

    name: str
    kind: str
    values: tuple[Any, ...]

    def draw(self, generator: np.random.Generator) -> Any:
        """One value."""
        if self.kind == "choice":
            return self.values[int(generator.integers(len(self.values)))]
        drawn = float(generator.uniform(self.values[0], self.values[1]))
        if self.kind == "loguniform":
            return math.exp(drawn)
        if self.kind == "uniform":
            return drawn
        found = round(drawn / self.values[2]) * self.values[2]
        return int(found) if all(float(value).is_integer() for value in self.values) else found


def read_space(path: Path) -> list[Dimension]:
    """The dimensions of a file with lines such as ``learning_rate choice [0.001, 0.01]``.

    Raises:
        ConfigError: it cannot be read, or a line is not of that form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--space={path} cannot be read ({type(error).__name__}); allowed is a text file with lines such "
            "as 'learning_rate choice [0.001, 0.01]'."
        ) from None
    found = [_dimension(line, path, n) for n, line in enumerate(lines, 1) if line.split("#")[0].strip()]
    names = [dimension.name for dimension in found]
    if not found or len(set(names)) < len(names):
        raise ConfigError(f"--space={path} is refused: allowed is one line for each setting, and at least one.")
    return found


def _dimension(line: str, path: Path, number: int) -> Dimension:
    words = line.split("#")[0].split(maxsplit=2)
    try:
        name, kind, text = words
        values = ast.literal_eval(text if kind == "choice" else f"[{text}]")
        if kind == "choice" and isinstance(values, list) and values:
            json.dumps(values, allow_nan=False)  # as results hold them
            return Dimension(name, kind, tuple(values))
        numbers = tuple(float(value) for value in values)
        count, largest = _NUMBERS[kind]
        if len(numbers) == count and _are_bounds(numbers, largest):
            return Dimension(name, kind, numbers)
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError):
        pass
    raise ConfigError(
        f"line {number} of --space={path} is refused: {line.strip()!r}; allowed are 'name choice [a, b]', "
        "'name uniform low,high', 'name loguniform low,high' (natural logarithms: -9,-3 is 0.0001 to 0.05) and "
        "'name quniform low,high,step', with low below high."
    )


def _are_bounds(numbers: tuple[float, ...], largest: float) -> bool:
    low, high, *step = numbers
    return -largest <= low < high <= largest and all(0 < size <= largest for size in step)


def points_of(space: Sequence[Dimension], trials: int, seed: int) -> list[dict[str, Any]]:
    """The points that are tried: all of a space of choices that has no more than ``trials``, else drawn ones.

    Drawn points are different from each other; where the space has too few, there are fewer than ``trials``.
    """
    if all(dimension.kind == "choice" for dimension in space):
        grid = list(itertools.product(*(dimension.values for dimension in space)))
        if len(grid) <= trials:
            return [_point(space, values) for values in grid]
    generator, found = np.random.default_rng(seed), []
    for _ in range(100 * trials):
        point = _point(space, [dimension.draw(generator) for dimension in space])
        if point not in found:
            found.append(point)
        if len(found) == trials:
            break
    return found


def _point(space: Sequence[Dimension], values: Sequence[Any]) -> dict[str, Any]:
    return {dimension.name: value for dimension, value in zip(space, values, strict=True)}
