"""One process at a time trains into the checkpoints of a run."""

from __future__ import annotations

from pathlib import Path

from filelock import Timeout

from ..errors import CheckpointError
from ..locks import lock_beside


class Hold:
    """A lock for ``file``, until it is released or the process ends.

    Raises:
        CheckpointError: another process, or another trainer of this one, has it.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._lock = lock_beside(file, "no other run must be resumed from it now")
        except Timeout as held:
            raise CheckpointError(
                f"Another run is training into '{file}' (it holds '{Path(held.lock_file).name}'); allowed is "
                "to wait for its end."
            ) from None

    def release(self) -> None:
        """Let others train into it."""
        self._lock.release()
