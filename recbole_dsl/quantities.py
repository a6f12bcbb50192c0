"""Amounts of memory and stretches of training, as people write them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal

from recbole_dsl.errors import ConfigError

LARGEST: Final = 2**63 - 1
"""No count that we read may be larger."""

_QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z%]+)\s*", re.ASCII)
_BYTE_UNITS: Final = {
    "B": 1,
    "KB": 10**3,
    "KiB": 2**10,
    "MB": 10**6,
    "MiB": 2**20,
    "GB": 10**9,
    "GiB": 2**30,
    "TB": 10**12,
    "TiB": 2**40,
}
BYTES_ALLOWED: Final = "text such as '2MB' or '512KiB'"


def parse_bytes(text: str) -> int:
    """Read ``'256MB'``, ``'1.5 GiB'`` as a number of bytes, fractions of a byte rounded down.

    Raises:
        ConfigError: not a number followed by B, KB, KiB, MB, MiB, GB, GiB, TB or TiB (in any case),
            or less than one byte.
    """
    units = {unit.lower(): size for unit, size in _BYTE_UNITS.items()}
    match = _QUANTITY.fullmatch(text)
    size = units.get(match[2].lower()) if match else None
    amount = math.floor(Fraction(match[1]) * size) if match and size else 0
    if not 1 <= amount <= LARGEST:
        raise ConfigError(f"{text!r} is not an amount of memory; allowed is {BYTES_ALLOWED}.")
    return amount


def format_bytes(amount: int) -> str:
    """The shortest exact text that :func:`parse_bytes` reads as ``amount``."""
    exact = ((amount // size, unit) for unit, size in _BYTE_UNITS.items() if amount % size == 0)
    return "{}{}".format(*min(exact, key=lambda part: part[0]))


_COUNT: Final = re.compile(r"(\d[\d_]*(?:\.\d+)?|\.\d+)(?:e\+?(\d{1,2}))?([kmb]?)", re.ASCII | re.IGNORECASE)
_COUNT_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
COUNTS_ALLOWED: Final = "a whole number of at least 1 such as 1000000, 1_000_000, 1e6, 10M or 1.5B"


def parse_count(text: str) -> int:
    """Read ``'1e9'``, ``'1_000_000'``, ``'10M'`` or ``'1.5B'`` (K: thousand, M: million, B: billion), exactly.

    Raises:
        ConfigError: no such text, no whole number, or not from 1 to 2**63 - 1.
    """
    match = _COUNT.fullmatch(text.strip())
    count = Fraction(0)
    if match:
        number = Fraction(match[1].replace("_", ""))
        count = number * 10 ** int(match[2] or 0) * _COUNT_UNITS[match[3].lower()]
    if count.denominator != 1 or not 1 <= count <= LARGEST:
        raise ConfigError(f"{text!r} is no count; allowed is {COUNTS_ALLOWED}.")
    return int(count)


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget of ``count`` ≥ 1 live weights, or of ``count`` bytes with the index included."""

    count: int
    unit: Literal["weights", "bytes"]

    def __str__(self) -> str:
        return str(self.count) if self.unit == "weights" else format_bytes(self.count)


SpanUnit = Literal["steps", "epochs", "percent"]
_SPAN_UNITS: Final[dict[str, SpanUnit]] = {
    "step": "steps",
    "steps": "steps",
    "epoch": "epochs",
    "epochs": "epochs",
    "%": "percent",
    "percent": "percent",
}


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of training: ``amount`` ≥ 0 in ``unit``; never shorter than ``minimum`` steps."""

    amount: float
    unit: SpanUnit
    minimum: int = 0

    def steps(self, steps_per_epoch: int, epochs: int) -> int:
        """This span in optimizer steps, rounded down, at least ``minimum``.

        Percent are of all planned steps, ``steps_per_epoch`` · ``epochs`` (both ≥ 0).
        """
        # The decimal that was written, not its binary neighbour: 29 % of 100 steps is 29, not 28.
        amount = Fraction(str(self.amount))
        if self.unit == "epochs":
            amount *= steps_per_epoch
        elif self.unit == "percent":
            amount = amount * steps_per_epoch * epochs / 100
        return max(self.minimum, math.floor(amount))

    def __str__(self) -> str:
        amount = f"{Decimal(str(self.amount)):f}".removesuffix(".0")
        return f"{amount}%" if self.unit == "percent" else f"{amount} {self.unit}"


def parse_span(text: str, minimum: int = 0) -> Span:
    """Read ``'4000 steps'``, ``'60 epochs'`` or ``'30%'``.

    Raises:
        ConfigError: not a number ≥ 0 followed by steps, epochs or %; a fraction of a step; or more
            than 100 %.
    """
    match = _QUANTITY.fullmatch(text)
    unit = _SPAN_UNITS.get(match[2].lower()) if match else None
    amount = float(match[1]) if match else math.nan
    whole = unit != "steps" or amount.is_integer()
    if not match or unit is None or not whole or amount > (100 if unit == "percent" else LARGEST):
        raise ConfigError(
            f"{text!r} is no stretch of training; allowed is text such as '4000 steps', '60 epochs' or '30%'."
        )
    return Span(amount, unit, minimum)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often something happens: every ``amount`` > 0 of ``unit``."""

    amount: float
    unit: Literal["steps", "epochs", "minutes"]

    def is_due(self, event: str, count: int, seconds: float) -> bool:
        """Whether it is time, when ``event`` ("steps" or "epochs") has come for the ``count``-th time.

        ``seconds``: since the last time it was due.
        """
        if self.unit == "minutes":
            return seconds >= 60 * self.amount
        return self.unit == event and count % int(self.amount) == 0

    def __str__(self) -> str:
        return f"{Decimal(str(self.amount)):f}".removesuffix(".0") + f" {self.unit}"


PACES_ALLOWED: Final = "text such as '10 minutes', '2 epochs' or '500 steps'"
_PACE_UNITS: Final[dict[str, Literal["steps", "epochs", "minutes"]]] = {
    "step": "steps",
    "steps": "steps",
    "epoch": "epochs",
    "epochs": "epochs",
    "minute": "minutes",
    "minutes": "minutes",
}


def parse_pace(text: str) -> Pace:
    """Read ``'10 minutes'``, ``'2 epochs'`` or ``'500 steps'``.

    Raises:
        ConfigError: no such text, zero, or a fraction of an epoch or a step.
    """
    match = _QUANTITY.fullmatch(text)
    unit = _PACE_UNITS.get(match[2].lower()) if match else None
    amount = float(match[1]) if match else math.nan
    if unit is None or not 0 < amount <= LARGEST or (unit != "minutes" and not amount.is_integer()):
        raise ConfigError(f"{text!r} is no pace; allowed is {PACES_ALLOWED}.")
    return Pace(amount, unit)
