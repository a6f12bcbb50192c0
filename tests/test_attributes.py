"""Attributes that a model changes while it trains come back from a checkpoint as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recbole_dsl.tensor_file import read_tensor_file, write_tensor_file
from recbole_dsl.training.attributes import ChangedAttributes

VALUES: dict[str, Any] = {
    "number": 0.25,
    "numpy number": np.float64(0.1),
    "half": np.float16(0.1),
    "counter": np.int64(2**40),
    "unsigned counter": np.uint64(2**63 + 5),
    "flag": np.bool_(True),
    "array": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "booleans": np.array([True, False]),
    "unsigned": np.array([[65535, 1]], dtype=np.uint16),
    "bytes": np.arange(3, dtype=np.uint8),
    "no entries": np.empty((0, 2), dtype=np.int32),
    "set": {3, "three", None},
    "nested": {"a": [np.array([1.5]), (np.int32(2), torch.ones(2))], "b": {"c": np.array([1])}},
    "looks like an older file's": {"array": 1},
    "looks like a set": {"set": [1, 2]},
}


def same(a: Any, b: Any) -> bool:
    """Equal in type and value."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("name", VALUES)
def test_a_changed_attribute_comes_back_through_a_file(name: str, tmp_path: Path) -> None:
    """Of the same type and value; what has not changed is not stored."""
    trained, fresh = nn.Linear(1, 1), nn.Linear(1, 1)
    trained.kept = fresh.kept = np.float64(0.5)  # type: ignore[assignment]
    changed = ChangedAttributes(trained)
    trained.own = VALUES[name]
    state = changed.state_dict()
    assert {key for values in state.values() for key in values} == {"own"}
    write_tensor_file(tmp_path / "file", "test", 1, state)
    ChangedAttributes(fresh).load_state_dict(read_tensor_file(tmp_path / "file", "test", 1))
    assert same(fresh.own, VALUES[name])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (np.float64(1.0), np.float64(1.5)),
        (np.array([1, 2], dtype=np.int32), np.array([1, 2], dtype=np.uint32)),
        ({1, 2}, {1, 2, 3}),
    ],
)
def test_a_change_is_seen(before: Any, after: Any) -> None:
    """Also of the type alone."""
    model = nn.Linear(1, 1)
    model.own = before
    changed = ChangedAttributes(model)
    assert changed.state_dict() == {}
    model.own = after
    assert list(changed.state_dict()[""]) == ["own"]


def test_arrays_of_older_files_are_read() -> None:
    """They say no type."""
    model = nn.Linear(1, 1)
    ChangedAttributes(model).load_state_dict({"": {"own": {"array": torch.arange(3)}}})
    assert same(model.own, np.arange(3))
