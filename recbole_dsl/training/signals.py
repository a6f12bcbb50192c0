"""SIGTERM and SIGINT, noted while a step is made and obeyed after it."""

from __future__ import annotations

import signal
import threading
from time import monotonic
from types import FrameType
from typing import Any, Final

ASKED: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a process to end; Windows knows the second, but nobody sends it there."""

ECHO: Final = 1.0
"""Seconds within which a second signal is the first one again: a terminal sends Ctrl-C to a command and to the
processes it has started, and the command passes it on to them."""


class Interrupted(KeyboardInterrupt):
    """A signal has ended the training; ``number`` is the signal's."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number

    @property
    def exit_status(self) -> int:
        """What a shell shows for a process that a signal has ended."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"{signal.Signals(self.number).name}: {self.args[0]}"


class Signals:
    """Context manager: the first signal is noted in :attr:`caught`, a later one acts at once.

    Python delivers signals to the main thread only; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._caught_at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        self.caught = None
        if threading.current_thread() is threading.main_thread():
            # None is a handler that is not Python's, which could not be put back.
            heard = [number for number in ASKED if signal.getsignal(number) is not None]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Interrupted):
            self.caught = None  # obeyed
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.caught is None:
            self.caught, self._caught_at = number, monotonic()
        elif monotonic() - self._caught_at > ECHO:
            raise Interrupted(number, "stopped in the middle of a step, without saving.")
