"""Files that are written whole or not at all, and never over somebody else's."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of ``path`` once it is complete and on disk.

    A write that breaks off, even by a crash, leaves the old file as it was.
    """
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _usual_mode())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _usual_mode() -> int:
    """What ``open`` would give a new file; a temporary one is for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def claim(path: str | os.PathLike[str]) -> Path:
    """Create ``path``, or the first of ``-1``, ``-2`` … before its suffix that does not exist, empty.

    Of several processes that ask for one path each gets another.
    """
    first = Path(path)
    candidate, number = first, 0
    while True:
        try:
            os.close(os.open(candidate, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return candidate
        except FileExistsError:
            number += 1
            candidate = first.with_name(f"{first.stem}-{number}{first.suffix}")
