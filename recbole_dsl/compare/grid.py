"""Which cells there are, and in which order they can be run."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ConfigError
from .methods import Method

FIRST_SEED = 2020
"""RecBole's default."""


@dataclass(frozen=True)
class Cell:
    """One run; ``density`` is None for a method that has none; ``trial``: number of a point that is tried."""

    model: str
    dataset: str
    method: str
    density: float | None
    seed: int
    trial: int | None = None

    @property
    def key(self) -> str:
        """The name of its files."""
        model = self.model.replace(":", ".")
        density = "" if self.density is None else f"-{self.density:.12g}"
        trial = "" if self.trial is None else f"-trial{self.trial}"
        return f"{model}-{self.dataset}-{self.method}{density}-{self.seed}{trial}"

    @property
    def dense(self) -> Cell:
        """The dense model of the same seed."""
        return Cell(self.model, self.dataset, "dense", None, self.seed)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def refuse_same_names(models: Sequence[str]) -> None:
    """Raise ConfigError for models whose classes have one name."""
    names = [model.rpartition(":")[2] for model in models]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"models={','.join(models)} is refused, because a table has a row for each name: allowed are "
            "models whose classes have different names."
        )


def cells_of(
    models: Sequence[str],
    datasets: Sequence[str],
    methods: Sequence[Method],
    densities: Sequence[float],
    seeds: Sequence[int],
) -> list[Cell]:
    """All cells, seed by seed, so that a grid that is stopped has whole comparisons.

    Raises:
        ConfigError: a density is none, a method cannot train a model, or two models or two cells would have
            one name.
    """
    for density in densities:
        if not 0 < density <= 1:
            raise ConfigError(f"densities={density:g} is refused: allowed are numbers above 0 and at most 1.")
    refuse_same_names(models)
    for method, model in itertools.product(methods, models):
        name = model.rpartition(":")[2]
        if name in method.refuses:
            raise ConfigError(
                f"Method {method.name!r} cannot train {name}, which {method.refuses[name]}; allowed are other "
                "methods or models."
            )
    found = [
        Cell(model, dataset, method.name, density, seed)
        for seed in seeds
        for dataset in datasets
        for model in models
        for method in methods
        for density in (densities if method.densities else [None])
    ]
    counts = Counter(cell.key.casefold() for cell in found)  # which some file systems do not tell apart
    twice = sorted(cell.key for cell in found if counts[cell.key.casefold()] > 1)
    if twice:
        raise ConfigError(
            f"cell {twice[0]} is there twice; allowed is every model, method, density and seed once, whatever "
            "the case of its letters."
        )
    return found
