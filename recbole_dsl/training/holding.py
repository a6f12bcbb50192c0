"""One process at a time trains into the checkpoints of a run."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import CheckpointError


class Hold:
    """A lock for ``file``, until it is released or the process ends. The file of the lock stays: to remove it
    would let two others have it.

    Raises:
        CheckpointError: another process, or another trainer of this one, has it.
    """

    def __init__(self, file: Path) -> None:
        path = file.with_name(f".{file.name}.lock")
        self._lock = FileLock(path)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise CheckpointError(
                f"Another run is training into '{file}' (it holds '{path.name}'); allowed is to wait for "
                "its end."
            ) from None
        except (OSError, NotImplementedError) as error:
            # The file system has no locks, or no file may be made there: no reason not to train.
            getLogger().warning(
                f"'{file}' cannot be locked ({error}): no other run must be resumed from it now."
            )

    def release(self) -> None:
        """Let others train into it."""
        self._lock.release()
