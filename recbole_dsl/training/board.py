"""TensorBoard's writer, without which a training goes on."""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
from typing import Any


class Board:
    """Passes calls on to ``writer`` until one fails for want of a place to write, which is told once."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> None:
            if self._writer is None:
                return
            try:
                getattr(self._writer, name)(*args, **kwargs)
            except OSError as error:
                self._writer = None
                getLogger().warning(
                    "TensorBoard's files are not written any more (%s).", error.strerror or error
                )

        return call
