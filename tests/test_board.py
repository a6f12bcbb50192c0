"""TensorBoard's writer may fail; training may not."""

from __future__ import annotations

import copy
import errno
import logging
from typing import Any

import pytest

from recbole_dsl.training.board import Board


class Writer:
    """One whose disk is full after two calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def add_scalar(self, *values: Any) -> None:
        if len(self.calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.calls.append(values)


def test_a_writer_that_fails_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """One warning, and calls go nowhere from then on; other mistakes are not hidden."""
    writer = Writer()
    board = Board(writer)
    for step in range(5):
        board.add_scalar("loss", 0.5, step)
    board.add_hparams({}, {})
    assert writer.calls == [("loss", 0.5, 0), ("loss", 0.5, 1)]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "TensorBoard's files are not written any more (No space left on device)."
    ]
    with pytest.raises(TypeError):
        Board(Writer()).add_scalar(wrong=1)
    assert isinstance(copy.copy(board), Board)
