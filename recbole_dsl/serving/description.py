"""What an artifact holds, in numbers: sizes, and where its live weights are."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from .artifact import Artifact
from .table import SparseTable

GROUPS: Final = 5
"""Groups of equally many users or items, from the least to the most popular."""


def description(artifact: Artifact) -> dict[str, Any]:
    """Plain values: what the artifact is, bytes, metrics, and live weights per row by popularity group."""
    manifest = artifact.manifest
    files = {name: entry["bytes"] for name, entry in manifest.files.items()}
    return {
        "model": manifest.model,
        "dataset": manifest.dataset,
        "scored_by": f"numpy ({manifest.encoder})" if manifest.form == "vectors" else "RecBole",
        "values": manifest.values,
        "users": manifest.users - 1,
        "items": manifest.items - 1,
        "history": manifest.history,
        "density": manifest.density,
        "sizes": manifest.sizes,
        "share_of_dense": manifest.sizes["weights_file"] / max(1, manifest.sizes["dense_fp32"]),
        "files": files,
        "metrics": manifest.metrics,
        "tensors": {
            name: {"shape": list(info.shape), "live": info.live} for name, info in manifest.tensors.items()
        },
        "live_by_popularity": {
            name: _by_popularity(table, popularity)
            for name, table in artifact.tensors.items()
            if isinstance(table, SparseTable) and (popularity := _popularity(artifact, name, table)) is not None
        },
        "created": manifest.created,
    }


def _popularity(artifact: Artifact, name: str, table: SparseTable) -> np.ndarray | None:
    """Interactions of each row of a table of users or items, None if it is neither or they are not known."""
    manifest = artifact.manifest
    if "item" in name.lower() and table.shape[0] == manifest.items:
        return artifact.catalogue["popularity"]
    if "user" in name.lower() and table.shape[0] == manifest.users:
        # A history leaves out what the graph beside it has, and has what any other encoder's graph has.
        arrays = artifact.interactions
        names = [name for name in ("graph", "history") if f"{name}#counts" in arrays]
        names = names or sorted({key.partition("#")[0] for key in arrays})
        counts = [arrays[f"{name}#counts"].astype(np.int64) for name in names]
        return sum(counts) if counts else None  # type: ignore[return-value]
    return None


def _by_popularity(table: SparseTable, popularity: np.ndarray) -> list[dict[str, float]]:
    rows = np.arange(1, table.shape[0])  # row 0 is padding
    order = rows[np.argsort(popularity[1:], kind="stable")]
    counts = table.counts
    return [
        {
            "rows": len(part),
            "interactions": float(popularity[part].mean()),
            "live_per_row": float(counts[part].mean()),
            "density": float(counts[part].mean() / table.width),
        }
        for part in np.array_split(order, GROUPS)
        if len(part)
    ]
