"""Exceptions a user can act on.

Every message is one sentence that says what was wrong, where, and what is allowed.
The command line prints it without a traceback and exits with a non-zero status.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

INTERRUPTED: Final = "interrupted; checkpoints that were written are kept."
"""What is said where a signal has ended a command that has nothing to save."""


class DSLError(Exception):
    """Base of all errors this package raises on purpose."""


class ConfigError(DSLError):
    """A setting is unknown, out of range, of the wrong type, or contradicts another one."""


class DataError(DSLError):
    """A dataset cannot be read, downloaded or split as the settings say."""


class CheckpointError(DSLError):
    """A checkpoint is missing, damaged, of another kind, or cannot be written."""


class ArtifactError(DSLError):
    """A served model cannot be written, or is missing, damaged or of another version."""


class RequestError(DSLError):
    """A recommendation was asked for that cannot be made: an unknown user or item, a number out of range."""


class UnknownTokenError(RequestError):
    """A user or item is not in the data."""


class NumberError(DSLError):
    """A loss or a gradient is no finite number."""


class RanksError(DSLError):
    """Several processes cannot train together, or do not agree."""


class TargetError(DSLError):
    """No tensor, or the wrong one, was selected for sparsity."""


class UnsupportedOptimizerError(DSLError):
    """The optimizer keeps per-weight state this package does not know how to move."""


class PackedWriteError(DSLError, RuntimeError):
    """Something tried to write in place into the dense view of a packed weight."""


class StaleGraphError(DSLError, RuntimeError):
    """A backward pass ran through a graph built before the topology changed."""


class SecondOrderError(DSLError, RuntimeError):
    """A gradient of a gradient was asked for with respect to packed weights."""


def on_one_line(error: BaseException, with_type: bool = True) -> str:
    """What an exception says, as part of a sentence."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if with_type else text


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known word nearest to ``word``, or ``""``.

    ``cutoff``: how like it that has to be, from 0 to 1 (equal).
    """
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]!r}?)" if close else ""
