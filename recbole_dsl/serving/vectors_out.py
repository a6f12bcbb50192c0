"""Vectors in the files that scipy, numpy and indexes of nearest neighbours read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files import write_text_whole, written_whole
from .table import Matrix, SparseTable, as_dense


def write_vectors(
    folder: Path, name: str, rows: SparseTable | Matrix, tokens: Sequence[str], dense: bool
) -> Path:
    """Write ``name.npz`` as ``scipy.sparse.load_npz`` reads it, or ``name.npy``, and tokens as ``name.json``.

    Args:
        rows: of numbers 1, 2, …, without that of padding. tokens: theirs.
        dense: write ``.npy`` whatever the rows are. A matrix of the other form that is there is deleted.

    Returns:
        The path of the matrix.
    """
    sparse = isinstance(rows, SparseTable) and not dense
    # The other form would be of another model than the tokens.
    (folder / f"{name}{'.npy' if sparse else '.npz'}").unlink(missing_ok=True)
    write_text_whole(folder / f"{name}.json", json.dumps(list(tokens)))
    if isinstance(rows, SparseTable) and not dense:
        path = folder / f"{name}.npz"
        with written_whole(path) as file:
            np.savez(
                file, format=np.array(b"csr"), shape=np.array(rows.shape), data=rows.values,
                indices=rows.columns.astype(np.int32), indptr=rows.pointers,
            )  # fmt: skip
        return path
    path = folder / f"{name}.npy"
    with written_whole(path) as file:
        np.save(file, as_dense(rows))
    return path
