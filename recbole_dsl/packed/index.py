"""The index of a packed group: row pointers and column ids, in the smallest types that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sparsity.budget import index_type_bytes, pointer_type_bytes


@dataclass(frozen=True)
class TensorSlice:
    """One dense tensor inside a group, seen as ``rows`` × ``cols`` (trailing dimensions flat).

    ``first_row`` and ``first_position`` say where it starts among the group's rows and positions.
    """

    name: str
    shape: tuple[int, ...]
    rows: int
    cols: int
    first_row: int
    first_position: int


def table_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A tensor's shape as (rows, columns): the first dimension by the rest; 1-D is a single row."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


def slices_of(names: Sequence[str], shapes: Sequence[Sequence[int]]) -> tuple[TensorSlice, ...]:
    """Lay tensors one after another."""
    result, row, position = [], 0, 0
    for name, shape in zip(names, shapes, strict=True):
        rows, cols = table_shape(shape)
        result.append(TensorSlice(name, tuple(shape), rows, cols, row, position))
        row, position = row + rows, position + rows * cols
    return tuple(result)


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer types of an index by their bytes."""


def column_dtype(columns: int) -> torch.dtype:
    """The smallest integer type that holds ids below ``columns``."""
    return _INTEGERS[index_type_bytes(columns)]


def pointer_dtype(live: int) -> torch.dtype:
    """The integer type of row pointers into ``live`` weights."""
    return _INTEGERS[pointer_type_bytes(live)]


def build_index(live: Tensor, slices: Sequence[TensorSlice]) -> tuple[Tensor, Tensor]:
    """Row pointers (rows + 1) and column ids (budget) of ascending flat positions ``live``."""
    counts, columns = [], []
    id_type = column_dtype(max(s.cols for s in slices))
    ends = torch.tensor([s.first_position + s.rows * s.cols for s in slices], device=live.device)
    cuts = [0, *torch.searchsorted(live, ends).tolist()]
    for t, part in enumerate(slices):
        local = live[cuts[t] : cuts[t + 1]] - part.first_position
        counts.append(torch.bincount(local // part.cols, minlength=part.rows))
        columns.append((local % part.cols).to(id_type))
    ends_of_rows = torch.cat(counts).cumsum(0).to(pointer_dtype(live.numel()))
    return torch.cat([ends_of_rows.new_zeros(1), ends_of_rows]), torch.cat(columns)


def is_index(row_pointers: Tensor, column_ids: Tensor, slices: Sequence[TensorSlice]) -> bool:
    """Whether pointers and columns name each a different position, in ascending order, and all exist."""
    lengths = row_pointers.long().diff()
    if int(row_pointers[0]) != 0 or int(row_pointers[-1]) != column_ids.numel() or bool((lengths < 0).any()):
        return False
    columns = torch.cat([torch.full((s.rows,), s.cols) for s in slices]).to(lengths.device)
    starts = columns.cumsum(0) - columns
    ids = column_ids.long()
    positions = torch.repeat_interleave(starts, lengths) + ids
    inside = (ids >= 0) & (ids < torch.repeat_interleave(columns, lengths))
    return bool(inside.all()) and bool((positions.diff() > 0).all())


def row_numbers(row_pointers: Tensor, first: int, last: int) -> Tensor:
    """For the live weights of rows ``first`` … ``last`` - 1 their row, counted from ``first``."""
    lengths = row_pointers[first + 1 : last + 1] - row_pointers[first:last]
    return torch.repeat_interleave(lengths.long())
