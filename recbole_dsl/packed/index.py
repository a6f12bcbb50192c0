"""The index of a packed group: row pointers and column ids, in the smallest types that fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import compiled
from ..kernels import update as loops
from ..sparsity.budget import index_type_bytes, pointer_type_bytes
from ..sparsity.rows import row_blocks


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
    """Row pointers (rows + 1) and column ids (budget) of ascending flat positions ``live``.

    Beside the result it needs memory for a block of rows.
    """
    id_type = column_dtype(max(s.cols for s in slices))
    pointers = torch.zeros(
        1 + sum(s.rows for s in slices), dtype=pointer_dtype(live.numel()), device=live.device
    )
    columns = torch.empty(live.numel(), dtype=id_type, device=live.device)
    low = 0
    for block in _blocks(slices):
        high = int(torch.searchsorted(live, block.end))
        local = live[low:high] - block.start
        lengths = torch.bincount(local // block.cols, minlength=block.rows)
        pointers[block.first + 1 : block.last + 1] = lengths.cumsum(0).add_(low)
        columns[low:high] = local % block.cols
        low = high
    return pointers, columns


@dataclass(frozen=True)
class _Block:
    """Rows ``first`` … ``last`` - 1 of all rows, all of one tensor of ``cols`` columns.

    Its flat positions are ``start`` … ``end`` - 1.
    """

    first: int
    last: int
    cols: int
    start: int

    @property
    def rows(self) -> int:
        return self.last - self.first

    @property
    def end(self) -> int:
        return self.start + self.rows * self.cols


def _blocks(slices: Sequence[TensorSlice]) -> Iterator[_Block]:
    for tensor, first, last in row_blocks([(s.rows, s.cols) for s in slices]):
        s = slices[tensor]
        yield _Block(s.first_row + first, s.first_row + last, s.cols, s.first_position + first * s.cols)


Moved = tuple[Tensor, float]
"""A tensor with an entry per live weight, and the entry of a weight that arrives."""


def rebuild(
    slices: Sequence[TensorSlice],
    row_pointers: Tensor,
    column_ids: Tensor,
    leaving: Tensor,
    arriving: Tensor,
    moved: Sequence[Moved],
    kernels: str = "auto",
) -> None:
    """Change the topology in place: first the gaps are closed, then room is made for the arrivals.

    Needs memory for a block of rows only.

    Args:
        leaving: bool, per live weight. arriving: as many dead positions, flat, int64, ascending.
        moved: values, optimizer state and the like; their entries stay with their positions.
        kernels: the setting ``dsl_kernels``.
    """
    all_moved = [column_ids, *(tensor for tensor, _ in moved)]
    _close_gaps(slices, row_pointers, leaving, all_moved, compiled(kernels, row_pointers, leaving, *all_moved))
    _make_room(slices, row_pointers, column_ids, arriving, moved, kernels)
    for tensor in all_moved:
        tensor[:0].zero_()  # counts as a write, which compiled loops do unseen


def _close_gaps(
    slices: Sequence[TensorSlice],
    row_pointers: Tensor,
    leaving: Tensor,
    moved: Sequence[Tensor],
    in_loops: bool,
) -> None:
    """Move what stays to the front, in ascending order, so nothing is overwritten before it was read."""
    if in_loops:
        loops.close_gaps(leaving, row_pointers)
        for tensor in moved:
            loops.pack_front(leaving, tensor)
        return
    low = written = 0
    for block in _blocks(slices):
        ends = row_pointers[block.first + 1 : block.last + 1]
        high = int(ends[-1])
        stays = ~leaving[low:high]
        before = torch.cat([stays.new_zeros(1, dtype=torch.int64), stays.cumsum(0)])
        ends.copy_(before[ends.long() - low].add_(written))
        kept = stays.nonzero().flatten()
        for tensor in moved:
            tensor[written : written + kept.numel()] = tensor[low:high].index_select(0, kept)
        low, written = high, written + kept.numel()


def _make_room(
    slices: Sequence[TensorSlice],
    row_pointers: Tensor,
    column_ids: Tensor,
    arriving: Tensor,
    moved: Sequence[Moved],
    kernels: str,
) -> None:
    """Put the arrivals in their places, in descending order, so that all move to where was read before."""
    end = arriving.numel()
    for block in reversed(list(_blocks(slices))):
        if end == 0:  # the rows that are left stay where they are
            return
        start = int(torch.searchsorted(arriving, block.start))
        pointers = row_pointers[block.first : block.last + 1].long()
        low, high = int(pointers[0]), int(pointers[-1])
        new = arriving[start:end] - block.start
        room = slice(low + start, high + end)
        to, columns = _find_room(row_pointers, column_ids, block, new, kernels)
        for tensor, birth in [*moved, (column_ids, 0)]:
            _spread(tensor, slice(low, high), room, to, birth, kernels)
        column_ids[room].index_copy_(0, to, columns)
        row_ends = torch.arange(1, block.rows + 1, device=new.device).mul_(block.cols)
        pointers[1:] += torch.searchsorted(new, row_ends).add_(start)
        row_pointers[block.first + 1 : block.last + 1] = pointers[1:]
        end = start


def _find_room(
    row_pointers: Tensor, column_ids: Tensor, block: _Block, new: Tensor, kernels: str
) -> tuple[Tensor, Tensor]:
    """Where the ``new`` places (of the block, ascending) go among its live weights, and their columns."""
    columns = torch.empty_like(new, dtype=column_ids.dtype)
    if compiled(kernels, row_pointers, column_ids, new):
        targets = torch.empty_like(new)
        loops.find_room(new, row_pointers, column_ids, block.first, block.cols, targets, columns)
        return targets, columns
    pointers = row_pointers[block.first : block.last + 1].long()
    stay = torch.repeat_interleave(pointers.diff()).mul_(block.cols)
    stay += column_ids[int(pointers[0]) : int(pointers[-1])]
    targets = torch.searchsorted(stay, new).add_(torch.arange(new.numel(), device=new.device))
    return targets, columns.copy_(new % block.cols)


def _spread(tensor: Tensor, part: slice, room: slice, births: Tensor, birth: float, kernels: str) -> None:
    """Spread a ``part`` of a tensor over ``room``, whose places ``births`` get the value ``birth``."""
    if compiled(kernels, tensor, births):
        loops.make_room(tensor, part.start, part.stop, room.start, births, birth)
        return
    entries = tensor[part].clone()
    is_old = torch.ones(room.stop - room.start, dtype=torch.bool, device=tensor.device)
    old = is_old.index_fill_(0, births, False).nonzero().flatten()
    tensor[room].index_copy_(0, old, entries).index_fill_(0, births, birth)


def is_index(row_pointers: Tensor, column_ids: Tensor, slices: Sequence[TensorSlice]) -> bool:
    """Whether pointers and columns name each a different position, in ascending order, and all exist."""
    if int(row_pointers[0]) != 0 or int(row_pointers[-1]) != column_ids.numel():
        return False
    if bool((row_pointers[1:] < row_pointers[:-1]).any()):
        return False
    return all(
        _is_ascending(row_pointers[block.first : block.last + 1], column_ids, block.cols)
        for block in _blocks(slices)
    )


def _is_ascending(row_pointers: Tensor, column_ids: Tensor, cols: int) -> bool:
    """Whether the columns of some rows exist and ascend in each row."""
    ids = column_ids[int(row_pointers[0]) : int(row_pointers[-1])].long()
    places = torch.repeat_interleave(row_pointers.long().diff()).mul_(cols).add_(ids)
    inside = (ids >= 0) & (ids < cols)
    return bool(inside.all()) and bool((places.diff() > 0).all())


def row_numbers(row_pointers: Tensor, first: int, last: int) -> Tensor:
    """For the live weights of rows ``first`` … ``last`` - 1 their row, counted from ``first``."""
    lengths = row_pointers[first + 1 : last + 1] - row_pointers[first:last]
    return torch.repeat_interleave(lengths.long())
