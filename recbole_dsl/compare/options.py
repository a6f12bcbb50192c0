"""What the options of a comparison mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import property_files
from ..errors import ConfigError
from ..settings import KEYS
from .grid import FIRST_SEED, Cell

SET_BY_CELLS = (
    *("model", "dataset", "seed", "dsl_method", "dsl_density", "dsl_budget", "dsl_result", "dsl_resume"),
    *("dsl_start_from", "checkpoint_dir"),
)
"""Settings that a comparison decides itself."""


def words(text: str, option: str) -> list[str]:
    """Different names, separated by commas."""
    found = [word.strip() for word in text.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise ConfigError(f"--{option}={text} is refused: allowed are different names, separated by commas.")
    return found


def numbers(text: str) -> list[float]:
    """Densities, separated by commas."""
    try:
        return [float(word) for word in words(text, "densities")]
    except ValueError:
        raise ConfigError(f"--densities={text} is refused: allowed are numbers, separated by commas.") from None


def whole(text: str, option: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--{option}={text} is refused: allowed is a whole number of at least 1.")
    return int(text)


def seeds(text: str) -> list[int]:
    """``3``: three seeds; ``5,9``: these; ``5,``: this one."""
    if "," not in text:
        return [FIRST_SEED + number for number in range(whole(text, "seeds"))]
    found = [word for word in text.split(",") if word]
    if not found or not all(word.isdecimal() for word in found):
        raise ConfigError(
            f"--seeds={text} is refused: allowed is how many, or a list of whole numbers such as 1,7."
        )
    return [int(word) for word in found]


def contents(paths: Sequence[str]) -> dict[str, Any]:
    """The contents of config files, merged."""
    merged: dict[str, Any] = {}
    for path in paths:
        content = property_files.read_mapping(Path(path))
        property_files.check_keys(content, KEYS, f"'{path}'")
        merged |= content
    return merged


def refuse_own(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for a setting that every cell has of its own."""
    for key in SET_BY_CELLS:
        if key in settings:
            raise ConfigError(
                f"{key}={settings[key]!r} is refused, because every cell of a comparison has its own; allowed "
                "are --models, --datasets, --methods, --densities and --seeds, and all other settings."
            )


def read_tuned(path: str | None) -> dict[str, Any]:
    """A file as ``recbole-dsl tune`` writes it: ``chosen`` settings by model, dataset and method, and ``how``.

    Raises:
        ConfigError: it cannot be read, or is not of that form.
    """
    if path is None:
        return {}
    content = property_files.read_mapping(Path(path))
    chosen = content.get("chosen")
    of_models = chosen.values() if isinstance(chosen, dict) else [None]
    of_datasets = [d for model in of_models for d in (model.values() if isinstance(model, dict) else [None])]
    of_methods = [m for data in of_datasets for m in (data.values() if isinstance(data, dict) else [None])]
    if not of_methods or set(content) - {"chosen", "how"}:
        of_methods = [None]
    for found in of_methods:
        if not isinstance(found, dict):
            raise ConfigError(
                f"--tuned={path} is refused; allowed is a file with 'chosen', below it models, below each "
                "datasets, below each methods, and below each method settings such as learning_rate."
            )
        property_files.check_keys(found, KEYS, f"'{path}'")
        refuse_own(found)
    return content


def settings_of(tuned: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """The tuned settings of a cell."""
    of_model = (tuned.get("chosen") or {}).get(cell.model) or {}
    return dict((of_model.get(cell.dataset) or {}).get(cell.method) or {})
