"""One process at a time trains into the checkpoints of a run."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import CheckpointError


class Hold:
    """A lock beside ``file``, named as it with ``.lock``; a killed process leaves the file, but no lock.

    Raises:
        CheckpointError: another process, or another trainer of this one, has it.
    """

    def __init__(self, file: Path) -> None:
        self._path = file.with_name(f"{file.name}.lock")
        self._lock = FileLock(self._path)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise CheckpointError(
                f"Another run is training into '{file}'; allowed is to wait for its end, or to go on from the "
                "file in another checkpoint_dir."
            ) from None
        except (OSError, NotImplementedError) as error:  # file systems without locks
            getLogger().warning(
                f"'{file}' cannot be locked ({error}): no other run must be resumed from it now."
            )

    def release(self) -> None:
        """Let others train into it."""
        if self._lock.is_locked:
            self._lock.release()
            self._path.unlink(missing_ok=True)
