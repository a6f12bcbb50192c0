"""Names of users and items, as they were in the data, by number."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from .table import pointers_of, smallest_unsigned


def _whole_number(token: str) -> int | None:
    """What a token of at most 18 signs says if it is a whole number as ``str`` writes it, else None."""
    if len(token) > 18 or not token.isascii() or not token.removeprefix("-").isdigit():
        return None
    number = int(token)
    return number if str(number) == token else None


class Tokens:
    """Original tokens of numbers 1, 2, …; number 0 is padding and has none.

    Whole numbers written in the usual way are kept as integers, anything else as text.
    """

    def __init__(self, numbers: np.ndarray | None, text: bytes = b"", ends: np.ndarray | None = None) -> None:
        self._numbers, self._text = numbers, text
        self._ends = np.zeros(1, np.int64) if ends is None else ends

    @staticmethod
    def arrays_of(tokens: Sequence[str], name: str) -> dict[str, np.ndarray]:
        """Tokens 1, 2, … as arrays of a file, smallest types first."""
        if all(_whole_number(t) is not None for t in tokens):
            numbers = np.array([int(t) for t in tokens], np.int64)
            if len(numbers) and numbers.min() >= 0:
                numbers = numbers.astype(smallest_unsigned(numbers.max()))
            return {f"{name}#numbers": numbers}
        encoded = [t.encode() for t in tokens]
        lengths = np.array([len(t) for t in encoded], np.int64)
        return {
            f"{name}#text": np.frombuffer(b"".join(encoded), np.uint8),
            f"{name}#lengths": lengths.astype(smallest_unsigned(lengths.max(initial=0))),
        }

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray], name: str) -> Tokens:
        """What :meth:`arrays_of` has written; KeyError or ValueError if it is something else."""
        if f"{name}#numbers" in arrays:
            numbers = arrays[f"{name}#numbers"]
            if numbers.ndim != 1 or numbers.dtype.kind not in "ui":
                raise ValueError("tokens are no integers")
            return cls(numbers)
        text, lengths = arrays[f"{name}#text"], arrays[f"{name}#lengths"]
        if text.dtype != np.uint8 or lengths.dtype.kind != "u" or lengths.ndim != 1:
            raise ValueError("tokens are no text")
        ends = pointers_of(lengths)
        if ends[-1] != text.size:
            raise ValueError("the lengths of tokens do not add up")
        contents = text.tobytes()
        contents.decode()  # UnicodeDecodeError is a ValueError
        return cls(None, contents, ends)

    def __len__(self) -> int:
        """Numbers there are, padding included."""
        return len(self._ends if self._numbers is None else self._numbers) + (self._numbers is not None)

    def __getitem__(self, number: int) -> str:
        """The token of a number from 1 on."""
        if self._numbers is not None:
            return str(int(self._numbers[number - 1]))
        return self._text[self._ends[number - 1] : self._ends[number]].decode()

    def number(self, token: str) -> int | None:
        """The number of a token, or None."""
        if self._numbers is None:
            return self._by_text.get(token)
        if (wanted := _whole_number(token)) is None:
            return None
        ordered, order = self._sorted
        place = int(np.searchsorted(ordered, wanted))
        return int(order[place]) + 1 if place < len(ordered) and int(ordered[place]) == wanted else None

    @functools.cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        assert self._numbers is not None
        order = np.argsort(self._numbers, kind="stable").astype(np.int32)
        return self._numbers[order].astype(np.int64), order

    @functools.cached_property
    def _by_text(self) -> dict[str, int]:
        return {self[number]: number for number in range(1, len(self))}
