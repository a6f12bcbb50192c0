"""What models keep in plain attributes: annealing counters, graphs of an epoch, centroids, attention.

A state dict holds parameters and buffers only. Whatever else a model changes while it trains is found by
comparing its attributes with those it had when training began.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from .adaptations import is_cache, rebuilt_every_epoch

_PLAIN: Final = (bool, int, float, str, type(None))

_LONGEST: Final = 10_000
"""Entries of a list or dict up to which its contents are looked at."""

_ARRAY, _SCALAR, _SET, _TYPE = "numpy.ndarray", "numpy.generic", "builtins.set", "numpy.dtype"
"""Keys under which a file, which has tensors and plain values only, holds what of numpy and sets there is."""

_ARRAY_BEFORE: Final = "array"
"""The key of arrays in older files, which say no type."""


class ChangedAttributes:
    """The attributes of a model and its submodules that are others than when this object was made."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._before = {(path, name): _mark(value) for path, name, value in _attributes(model)}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Values that have changed, by the submodule's path and the attribute's name."""
        changed: dict[str, dict[str, Any]] = {}
        for path, name, value in _attributes(self.model):
            if self._before.get((path, name), _ABSENT) != _mark(value):
                changed.setdefault(path, {})[name] = _stored(value)
        return changed

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Set the attributes to the values of ``state``, on the devices they are on now."""
        for path, values in state.items():
            module = self.model.get_submodule(path)
            for name, value in values.items():
                setattr(module, name, _restored(value, getattr(module, name, None)))


_ABSENT: Final = object()


def _attributes(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """(Path, name, value) of all attributes that can be stored and that nothing else restores."""
    for path, module in model.named_modules():
        rebuilt = rebuilt_every_epoch(module)
        for name, value in list(vars(module).items()):
            internal = name.startswith("_") or name in ("training", *rebuilt) or is_cache(model, name)
            if not internal and _storable(value):
                yield path, name, value


def _storable(value: Any) -> bool:
    """Whether a value is a tensor, an array of numbers, a plain value, or made of such."""
    if isinstance(value, dict):
        return (
            len(value) <= _LONGEST and all(map(_storable, value.keys())) and all(map(_storable, value.values()))
        )
    if type(value) in (list, tuple, set):
        return len(value) <= _LONGEST and all(map(_storable, value))
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf" and value.dtype.itemsize <= 8 and value.dtype.isnative
    return type(value) in _PLAIN or (isinstance(value, Tensor) and not isinstance(value, nn.Parameter))


def _mark(value: Any) -> Any:
    """Equal for a value that has not changed since, and for no other."""
    if isinstance(value, dict):
        return tuple((key, _mark(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_mark, value))
    if isinstance(value, set):
        return set, tuple(sorted(map(repr, value)))
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, hashlib.sha256(np.ascontiguousarray(value)).digest()
    return _TensorMark(value) if isinstance(value, Tensor) else (type(value), repr(value))


class _TensorMark:
    """Which tensor, and how often it was written to; does not keep it alive."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = weakref.ref(tensor), 0 if tensor.is_inference() else tensor._version

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _TensorMark) or self.version != other.version:
            return False
        mine = self.tensor()
        return mine is not None and mine is other.tensor()

    __hash__ = None  # type: ignore[assignment]


def _stored(value: Any) -> Any:
    """``value`` as tensors and plain values."""
    if isinstance(value, dict):
        return {key: _stored(item) for key, item in value.items()}
    if isinstance(value, set):
        return {_SET: [_stored(item) for item in sorted(value, key=repr)]}
    if isinstance(value, list | tuple):
        return type(value)(map(_stored, value))
    if isinstance(value, np.ndarray | np.generic):
        array = np.array(value, order="C")
        kind = array.dtype.name
        if array.dtype.kind == "u":  # a file of tensors has no unsigned numbers but bytes
            array = array.view(f"i{array.dtype.itemsize}")
        return {_ARRAY if isinstance(value, np.ndarray) else _SCALAR: torch.from_numpy(array), _TYPE: kind}
    return value.detach() if isinstance(value, Tensor) else value


def _restored(value: Any, now: Any) -> Any:
    """What :func:`_stored` was given; ``now``: what it replaces, whose device a tensor gets."""
    if isinstance(value, dict):
        if set(value) == {_SET}:
            return {_restored(item, None) for item in value[_SET]}
        if set(value) == {_ARRAY_BEFORE} and isinstance(value[_ARRAY_BEFORE], Tensor):
            return value[_ARRAY_BEFORE].cpu().numpy().copy()
        if set(value) in ({_ARRAY, _TYPE}, {_SCALAR, _TYPE}):
            kept = value[_ARRAY] if _ARRAY in value else value[_SCALAR]
            array = kept.cpu().numpy().copy().view(value[_TYPE])
            return array if _ARRAY in value else array[()]
        there = now if isinstance(now, dict) else {}
        return {key: _restored(item, there.get(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        places = now if isinstance(now, list | tuple) and len(now) == len(value) else [None] * len(value)
        return type(value)(map(_restored, value, places))
    if isinstance(value, Tensor) and isinstance(now, Tensor):
        return value.to(now.device)
    return value
