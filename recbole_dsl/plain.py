"""Values as JSON knows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

PLAIN: Final = (bool, int, float, str, type(None))


def finite(value: Any, instead: Callable[[float], Any]) -> Any:
    """Plain values with ``instead`` of every number that is not finite, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: finite(part, instead) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part, instead) for part in value]
    return instead(value) if isinstance(value, float) and not math.isfinite(value) else value


def plain(value: Any) -> Any:
    """``value`` made of dicts, lists, numbers, strings and None only; anything else as its text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if type(value) in PLAIN:
        return value
    item = getattr(value, "item", None)  # numpy scalars
    if item is not None and getattr(value, "ndim", 1) == 0:
        return plain(item())
    return str(value)
