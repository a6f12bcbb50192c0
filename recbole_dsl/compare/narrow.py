"""How narrow a dense model has to be to take no more bytes than a sparse one."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import RecBoleDSLConfig
from ..costs import trained_weights, undisturbed
from ..errors import ConfigError
from ..planning import OPTIMIZERS
from .twin import sparse_twin


@dataclass(frozen=True)
class Widths:
    """Settings that say how wide a model is, in their usual sizes; the first one counts columns.

    ``even``: those that have to be even.
    """

    usual: Mapping[str, int | list[int]]
    even: Collection[str] = ()

    @classmethod
    def of(
        cls, config: Any, names: Mapping[str, Sequence[str]], even: Mapping[str, Sequence[str]] | None = None
    ) -> Widths:
        """Those of a configuration; ``names``: by model, and ``default``; ``even``: by model.

        Raises:
            ConfigError: the model has none of them.
        """
        keys = names.get(config["model"], names["default"])
        usual = {key: config[key] for key in keys if config[key] is not None}
        if not usual:
            raise ConfigError(
                f"model={config['model']!r} cannot be made narrow, as it has no {' or '.join(keys)}; allowed "
                "are models with that, and those below 'widths' of properties/compare/narrow.yaml."
            )
        return cls(usual, (even or {}).get(config["model"], ()))

    @property
    def columns(self) -> int:
        """The usual number of columns."""
        return _first(next(iter(self.usual.values())))

    def at(self, columns: int) -> dict[str, int | list[int]]:
        """All settings scaled so that the first one is ``columns``; none below 1, and even ones even."""
        share = columns / self.columns

        def scaled(size: int, unit: int) -> int:
            return unit * max(1, int(size * share / unit + 0.5))

        def of(key: str, size: int | list[int]) -> int | list[int]:
            unit = 2 if key in self.even else 1
            return [scaled(x, unit) for x in size] if isinstance(size, list) else scaled(size, unit)

        return {key: of(key, size) for key, size in self.usual.items()}


def _first(size: Any) -> int:
    return int(size[0] if isinstance(size, list) else size)


def narrow_settings(
    config: RecBoleDSLConfig,
    as_large_as: str,
    names: Mapping[str, Sequence[str]],
    even: Mapping[str, Sequence[str]] | None = None,
) -> tuple[dict[str, Any], int]:
    """The settings of the widest dense model that is no larger than the sparse one of ``config``.

    Args:
        config: of the sparse model.
        as_large_as: ``"weights"`` compares weight bytes with weight and index bytes; ``"training"`` weights,
            gradients and optimizer state with the same and the index.
        names, even: see :meth:`Widths.of`.

    Returns:
        The settings, and how many weights the dense model of the usual width trains.

    Raises:
        ConfigError: even one column is too many, or the model has no known width.
    """
    widths = Widths.of(config, names, even)
    twin = sparse_twin(config)
    # An optimizer has no state before its first step.
    copies = 1 if as_large_as == "weights" else 2 + OPTIMIZERS[config["learner"].lower()].tensors
    allowed = copies * twin.held["weight_bytes"] + twin.held["index_bytes"]

    @functools.cache
    def largest_buildable(columns: int) -> tuple[int, int, int] | None:
        """The next smaller number of columns that a model can be built of (heads divide it); its weights, all
        and trained ones."""
        while columns:
            usual = {key: config[key] for key in widths.usual}
            try:
                for key, value in widths.at(columns).items():
                    config[key] = value
                with undisturbed():
                    network = config.model_class(config, twin.train_data._dataset)
                return columns, sum(p.numel() for p in network.parameters()), trained_weights(network)
            except (ValueError, AssertionError, RuntimeError, TypeError):
                columns -= 1
            finally:
                for key, value in usual.items():
                    config[key] = value
        return None

    def size(columns: int) -> int:
        found = largest_buildable(columns)
        return copies * twin.value_bytes * found[1] if found else 0

    columns = bisect.bisect_right(range(1, widths.columns + 1), allowed, key=size)
    found = largest_buildable(columns) if columns else None
    if found is None:
        least = next((n for n in range(1, widths.columns + 1) if size(n)), None)
        told = "none can be built" if least is None else f"with {least} columns it takes {size(least)} bytes"
        raise ConfigError(
            f"model={config['model']!r} has no narrow twin at dsl_density={config['dsl_density']}: {told}, and "
            f"the sparse model takes {allowed}; allowed are higher densities."
        )
    return widths.at(found[0]), (largest_buildable(widths.columns) or found)[2]
