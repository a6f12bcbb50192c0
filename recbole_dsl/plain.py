"""Values as JSON knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

PLAIN: Final = (bool, int, float, str, type(None))


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
