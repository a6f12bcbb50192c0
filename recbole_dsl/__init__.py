"""Sparse-from-scratch training of RecBole models: the live weights are the only ones that exist."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "DSLConfig",
    "RunResult",
    "SparseHandle",
    "SparseRecommender",
    "export_artifact",
    "load_data_and_model",
    "masks",
    "run_recbole_dsl",
    "sparsify",
]

if TYPE_CHECKING:
    from .experiment import run_recbole_dsl
    from .exporting import export_artifact
    from .handle import SparseHandle, masks, sparsify
    from .loading import load_data_and_model
    from .results import RunResult
    from .serving.recommender import SparseRecommender
    from .settings import DSLConfig

_HOMES = {
    "DSLConfig": "settings",
    "RunResult": "results",
    "SparseHandle": "handle",
    "SparseRecommender": "serving.recommender",
    "export_artifact": "exporting",
    "load_data_and_model": "loading",
    "masks": "handle",
    "run_recbole_dsl": "experiment",
    "sparsify": "handle",
}


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    """Load the public names on first use, so ``sparsify`` works where RecBole is not installed."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
