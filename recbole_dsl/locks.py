"""Locks beside files and folders, where the file system has them."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path

from filelock import FileLock, Timeout


def lock_beside(target: Path, otherwise: str, wait: bool = False) -> FileLock:
    """The lock for ``target``, held until it is released or the process ends, or not where there are none.

    Its file stays: to remove it would let two others have it.

    Args:
        otherwise: what a warning says where the file system has no locks, or no file may be made there.
        wait: for another process that has it.

    Raises:
        Timeout: another process, or another lock of this one, has it.
    """
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        getLogger().warning(f"'{target}' cannot be locked ({error}): {otherwise}.")
    return lock
