"""Files that are written whole or not at all, and never over somebody else's."""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of ``path`` once it is complete and on disk.

    A write that breaks off, even by a crash, leaves the old file as it was. A link stays one.
    """
    target = Path(os.path.realpath(path))
    _remove_abandoned(target)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=_mark(target) + f"{os.getpid()}-")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, usual_mode())
        os.replace(temporary, target)
        _flush_folder(target.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with written_whole(path) as file:
        file.write(text.encode())


def _here() -> str:
    """This machine's name, as part of the name of a file."""
    return re.sub(r"\W", "_", platform.node())


def temporary_folder(target: Path) -> Path:
    """A new folder beside ``target``, for its owner alone; those of killed processes are removed."""
    _remove_abandoned(target)
    return Path(tempfile.mkdtemp(dir=target.parent, prefix=_mark(target) + f"{os.getpid()}-"))


def _mark(target: Path) -> str:
    """How the names of temporary files and folders for ``target`` start; the process follows.

    Of a long name the end is left out, as a name has 255 bytes at most.
    """
    room = 255 - len(_here()) - 24  # dots, dashes, the number of the process, and what makes it unique
    name = os.fsencode(target.name)[:room].decode(errors="ignore")
    return f".{name}.{_here()}-"


def abandoned(target: Path) -> list[Path]:
    """Temporary files and folders for ``target`` that killed processes of this machine have left."""
    if os.name != "posix":
        return []
    mark = _mark(target)
    found = []
    for path in target.parent.glob(f"{glob.escape(mark)}*"):
        writer = path.name.removeprefix(mark).partition("-")[0]
        if writer.isdigit() and not _is_alive(int(writer)):
            found.append(path)
    return found


def _remove_abandoned(target: Path) -> None:
    for path in abandoned(target):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush_folder(folder: Path) -> None:
    """Put a new name on disk as well, where the system can: the file itself is there already."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def usual_mode(most: int = 0o666) -> int:
    """What the system gives a new file, or with 0o777 a folder; a temporary one is for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    return most & ~mask


def copy_whole(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a file, whole or not at all."""
    with open(source, "rb") as contents, written_whole(target) as file:
        shutil.copyfileobj(contents, file)


def claim_pair(path: str | os.PathLike[str], ending: str) -> tuple[Path, Path]:
    """``path``, and beside it a file whose name has ``ending`` in place of the suffix, neither of which exists.

    If one does, the first of ``-1``, ``-2`` … before the suffix is taken that is free. The second file is
    created, empty, so that of several processes that ask for one path each gets another.
    """
    first = Path(path)
    number = 0
    while True:
        stem = first.stem + (f"-{number}" if number else "")
        one, other = first.with_name(stem + first.suffix), first.with_name(stem + ending)
        number += 1
        if one.exists():
            continue
        try:
            os.close(os.open(other, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return one, other
        except FileExistsError:
            continue


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
