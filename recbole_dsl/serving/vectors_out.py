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
        dense: write ``.npy`` whatever the rows are.

    Returns:
        The path of the matrix.
    """
    sparse = rows if isinstance(rows, SparseTable) and not dense else None
    path = folder / f"{name}{'.npy' if sparse is None else '.npz'}"
    write_text_whole(folder / f"{name}.json", json.dumps(list(tokens)))
    with written_whole(path) as file:
        if sparse is None:
            np.save(file, as_dense(rows))
        else:
            np.savez(
                file, format=np.array(b"csr"), shape=np.array(sparse.shape), data=sparse.values,
                indices=sparse.columns.astype(np.int32), indptr=sparse.pointers,
            )  # fmt: skip
    return path
