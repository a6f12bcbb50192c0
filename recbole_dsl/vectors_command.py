"""``recbole-dsl vectors``: an artifact's vectors in the files that other tools read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from .command_line import Parser, a_path
from .errors import ConfigError
from .files import temporary_folder
from .serving.recommender import SparseRecommender
from .serving.vectors_out import write_vectors


def parser() -> Parser:
    """The options."""
    result = Parser(
        "vectors",
        "Write the vectors of users and items, whose inner products are the scores: users.npz and items.npz as "
        "scipy.sparse.load_npz reads them, or users.npy and items.npy where vectors are dense; their tokens "
        "are in users.json and items.json, in the order of the rows.",
    )
    result.add_argument("artifact", type=a_path, help="the artifact's folder")
    result.add_argument("--to", type=a_path, required=True, metavar="DIR", help="the folder to write into")
    result.add_argument("--dense", action="store_true", help="write dense matrices (.npy) in any case")
    result.add_argument("--force", action="store_true", help="replace files that exist")
    return result


def run(argv: Sequence[str]) -> None:
    """The command."""
    options = parser().read(argv)
    if options is None:
        return
    folder: Path = options.to
    if os.path.lexists(folder) and not folder.is_dir():
        raise ConfigError(f"--to={folder} is a file; allowed is a folder.")
    names = [folder / f"{name}{ending}" for name in ("users", "items") for ending in (".npz", ".npy", ".json")]
    for path in names:
        if path.is_dir():
            raise ConfigError(f"'{path}' is a folder, where a file is to be written; allowed is another --to.")
        if path.exists() and not options.force:
            raise ConfigError(f"'{path}' exists; allowed is another folder, or --force to replace files.")
    recommender = SparseRecommender.load(options.artifact)
    vectors = recommender.vectors()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--to={folder} cannot be made ({error.strerror or error}); allowed is a folder that may be "
            "written to."
        ) from None
    # All are written before any takes its place: users and items must be of one model.
    part = temporary_folder(folder / "vectors")
    told = []
    try:
        for name, rows, tokens in zip(
            ("users", "items"), vectors, (recommender.users, recommender.items), strict=True
        ):
            path = write_vectors(part, name, rows, tokens, options.dense)
            size = path.stat().st_size
            told.append(f"{folder / path.name}: {rows.shape[0]:,} × {rows.shape[1]}, {size:,} bytes")
        for path in names:
            if (part / path.name).exists():
                (part / path.name).replace(path)
            else:  # it would be of another model
                path.unlink(missing_ok=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print("\n".join(told))
