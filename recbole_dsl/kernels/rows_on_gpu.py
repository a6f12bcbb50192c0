"""The loops of rows.py as Triton kernels, one launch each: on a GPU, launches are what small steps wait for.

Sums are formed in an order that depends on the arguments alone, so equal runs give equal bits. Rows that may
repeat are sorted for that, those of all lookups of a step together; atomic additions, which torch's
``scatter_add_`` and ``index_add_`` use on a GPU, come in any order.

Tensors as in rows.py. ``first`` is where a tensor's rows start among those of its group, ``rows`` how many
it has, ``width`` its columns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 1024
"""Of a matrix that a program works on together."""

REPEATED = 16
"""Gradients of a repeated row that are added together."""


ALIGNED = 64
"""Elements between whose multiples tables begin: 256 bytes, which the GPU's matrix products ask for."""


@dataclass(frozen=True)
class Table:
    """A whole tensor of a packed group: ``rows`` × ``cols``, from row ``first`` of the group's rows on.

    ``values`` are the group's live weights, or their gradient that is added to; ``pointers`` and ``columns``
    its index.
    """

    values: Tensor
    pointers: Tensor
    columns: Tensor
    first: int
    rows: int
    cols: int

    @property
    def types(self) -> tuple[torch.dtype, ...]:
        """Tables of equal types can be read in one launch."""
        return self.values.dtype, self.pointers.dtype, self.columns.dtype

    @property
    def place(self) -> tuple[int, ...]:
        """Where it is: addresses and numbers."""
        addresses = self.values.data_ptr(), self.pointers.data_ptr(), self.columns.data_ptr()
        return *addresses, self.first, self.rows, self.cols


@dataclass(frozen=True)
class _Launch:
    """What one launch over some tables needs: ``places``, a line per number of ``_place`` and a column per
    table, filled up to a power of two; where each table starts in what is read, and how long that is."""

    places: Tensor
    programs: int
    starts: tuple[int, ...]
    size: int
    tile: tuple[int, int, int]


@functools.lru_cache(maxsize=64)
def _launch(places: tuple[tuple[int, ...], ...], device: torch.device) -> _Launch:
    """Made once for tables that stay where they are, since the GPU has to be told of them."""
    *_, rows, cols = zip(*places, strict=True)
    sizes = [r * c for r, c in zip(rows, cols, strict=True)]
    starts = _before([-(-size // ALIGNED) * ALIGNED for size in sizes])
    tile = _tile(max(cols))
    programs = _before([triton.cdiv(r, tile[0]) for r in rows])
    lines = [programs[:-1], starts[:-1], _before(sizes)[:-1], *zip(*places, strict=True)]
    missing = triton.next_power_of_2(len(places)) - len(places)
    told = torch.tensor([[*line, *[programs[-1]] * missing] for line in lines], device=device)
    return _Launch(told, programs[-1], tuple(starts[:-1]), starts[-1], tile)


def _before(sizes: Sequence[int]) -> list[int]:
    return [0, *accumulate(sizes)]


def _launches(tables: Sequence[Table]) -> Iterator[tuple[list[int], Table, _Launch]]:
    """For tables of equal types their numbers, the first of them, and what their launch needs."""
    equal: dict[tuple, list[int]] = {}
    for number, table in enumerate(tables):
        equal.setdefault(table.types, []).append(number)
    for numbers in equal.values():
        first = tables[numbers[0]]
        yield numbers, first, _launch(tuple(tables[n].place for n in numbers), first.values.device)


def read_tables(tables: Sequence[Table]) -> list[Tensor]:
    """Whole tables, each rows × cols, in one launch if their types are equal."""
    found: dict[int, Tensor] = {}
    for numbers, first, launch in _launches(tables):
        out = first.values.new_empty(launch.size)
        high, wide, live = launch.tile
        with _device_of(out):
            _read_tables[(launch.programs,)](
                launch.places, first.values, first.pointers, first.columns, out,
                TABLES=launch.places.shape[1], HIGH=high, WIDE=wide, LIVE=live,
            )  # fmt: skip
        for n, start in zip(numbers, launch.starts, strict=True):
            rows, cols = tables[n].rows, tables[n].cols
            found[n] = out[start : start + rows * cols].view(rows, cols)
    return [found[n] for n in range(len(tables))]


def add_tables(tables: Sequence[Table], gradients: Sequence[Tensor]) -> None:
    """Add the gradients of whole tables, each rows × cols, to the tables' ``values``."""
    for numbers, first, launch in _launches(tables):
        flat = [gradients[n].reshape(-1) for n in numbers]
        gradient = flat[0] if len(flat) == 1 else torch.cat(flat)
        high, _, live = launch.tile
        with _device_of(gradient):
            _add_tables[(launch.programs,)](
                launch.places, first.values, first.pointers, first.columns, gradient,
                TABLES=launch.places.shape[1], HIGH=high, LIVE=live,
            )  # fmt: skip


def read_rows(
    values: Tensor,
    pointers: Tensor,
    columns: Tensor,
    first: int,
    rows: int,
    ids: Tensor,
    out: Tensor,
    skipped: int = -1,
) -> Tensor:
    """Write the rows ``ids`` (n,) int64 into ``out`` (n × width).

    A row that the tensor does not have is NaN: an error would have to be waited for.

    Args:
        skipped: a row whose gradient will be dropped, -1 for none.

    Returns:
        For :func:`add_rows` the numbers of the rows among all of the group: (n,) int64, -1 for rows whose
        gradient is dropped or that do not exist.
    """
    count, width = out.shape
    lines = torch.empty_like(ids)
    if out.numel() == 0:
        return lines
    high, wide, live = _tile(width)
    grid = (triton.cdiv(count, high),)
    with _device_of(values):
        _read[grid](
            values, pointers, columns, ids, lines, out, count, first, rows, width, skipped,
            HIGH=high, WIDE=wide, LIVE=live,
        )  # fmt: skip
    return lines


def add_rows(
    total: Tensor, pointers: Tensor, columns: Tensor, lines: Sequence[Tensor], gradients: Sequence[Tensor]
) -> None:
    """Add the gradients of several lookups to ``total`` (live weights).

    Args:
        lines: of each lookup, as :func:`read_rows` gives them.
        gradients: of each lookup, n × width with one width for all.
    """
    line = lines[0] if len(lines) == 1 else torch.cat(list(lines))
    gradient = gradients[0] if len(gradients) == 1 else torch.cat(list(gradients))
    _add_sorted(total, (pointers, columns), line, gradient, -1)


def add_dense_rows(table: Tensor, ids: Tensor, gradient: Tensor, skipped: int = -1) -> None:
    """Add ``gradient`` (n × width) to the rows ``ids`` (n,) int64 of ``table`` (rows × width).

    ``skipped``: a row whose gradient is dropped, -1 for none; so are those of rows that there are not.
    """
    _add_sorted(table, None, ids, gradient, skipped)


def _add_sorted(
    total: Tensor, index: tuple[Tensor, Tensor] | None, ids: Tensor, gradient: Tensor, skipped: int
) -> None:
    count, width = gradient.shape
    if gradient.numel() == 0:
        return
    ordered, places = ids.sort(stable=True)
    pointers, columns = index or (None, None)
    rows = total.shape[0] if pointers is None else pointers.numel() - 1
    live = min(64, max(8, triton.next_power_of_2(total.numel() // max(1, rows))))
    with _device_of(total):
        _add_repeated[(count,)](
            total, pointers, columns, ordered, places, gradient, count, rows, width, skipped,
            PACKED=index is not None, MANY=REPEATED, LIVE=live, num_warps=1,
        )  # fmt: skip


def _device_of(tensor: Tensor) -> Any:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device_of(tensor)


def _tile(width: int) -> tuple[int, int, int]:
    """Rows, columns and live weights of a row that a program works on together."""
    wide = min(ELEMENTS, triton.next_power_of_2(width))
    return min(64, ELEMENTS // wide), wide, max(8, wide // 8)


@triton.jit  # its arguments cannot be annotated
def _read(
    values, pointers, columns, ids, lines, out, count, first, rows, width, skipped,
    HIGH: tl.constexpr, WIDE: tl.constexpr, LIVE: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64) * HIGH + tl.arange(0, HIGH)
    inside = line < count
    row = tl.load(ids + line, mask=inside, other=0)
    exists = inside & (row >= 0) & (row < rows)
    tl.store(lines + line, tl.where(exists & (row != skipped), row + first, -1), mask=inside)
    _write(values, pointers, columns, out + line * width, inside, row + first, exists, width, HIGH, WIDE, LIVE)


@triton.jit  # its arguments cannot be annotated
def _read_tables(
    places, values, pointers, columns, out,
    TABLES: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, LIVE: tl.constexpr,
):  # fmt: skip
    at, row, exists = _place(places, TABLES, HIGH)
    values, pointers, columns = _addresses(at, values, pointers, columns, TABLES)
    width = tl.load(at + 8 * TABLES)
    to = out + tl.load(at + TABLES) + row * width
    line = row + tl.load(at + 6 * TABLES)
    _write(values, pointers, columns, to, exists, line, exists, width, HIGH, WIDE, LIVE)


@triton.jit  # its arguments cannot be annotated
def _place(places, TABLES: tl.constexpr, HIGH: tl.constexpr):
    # What is told of the table that this program works on, the rows it works on, and which of them exist.
    program = tl.program_id(0)
    first = tl.load(places + tl.arange(0, TABLES))
    at = places + tl.sum((first <= program).to(tl.int32), 0) - 1
    row = (program - tl.load(at)) * HIGH + tl.arange(0, HIGH)
    return at, row, row < tl.load(at + 7 * TABLES)


@triton.jit  # its arguments cannot be annotated
def _addresses(at, values, pointers, columns, TABLES: tl.constexpr):
    # Tensors of the table, which may be of another group than those given, whose types they have.
    values = tl.load(at + 3 * TABLES).to(values.dtype)
    pointers = tl.load(at + 4 * TABLES).to(pointers.dtype)
    columns = tl.load(at + 5 * TABLES).to(columns.dtype)
    return values, pointers, columns


@triton.jit  # its arguments cannot be annotated
def _write(
    values, pointers, columns, to, inside, line, exists, width,
    HIGH: tl.constexpr, WIDE: tl.constexpr, LIVE: tl.constexpr,
):  # fmt: skip
    # Rows of the group, dense, to where the pointers ``to`` say; NaN where there is no row.
    start = tl.load(pointers + line, mask=exists, other=0).to(tl.int64)
    length = tl.load(pointers + line + 1, mask=exists, other=0).to(tl.int64) - start
    blank = tl.where(exists, 0.0, float("nan"))
    for column in range(0, width, WIDE):
        c = column + tl.arange(0, WIDE)
        here = inside[:, None] & (c[None, :] < width)
        background = tl.broadcast_to(blank[:, None], (HIGH, WIDE))
        tl.store(to[:, None] + c[None, :], background, mask=here)
    tl.debug_barrier()  # the live weights are written over the zeros by other threads of the program
    for weight in range(0, tl.max(length, 0), LIVE):
        k = weight + tl.arange(0, LIVE)
        live = k[None, :] < length[:, None]
        at = start[:, None] + k[None, :]
        c = tl.load(columns + at, mask=live, other=0).to(tl.int64)
        tl.store(to[:, None] + c, tl.load(values + at, mask=live, other=0.0), mask=live)


@triton.jit  # its arguments cannot be annotated
def _add_tables(
    places, total, pointers, columns, gradient,
    TABLES: tl.constexpr, HIGH: tl.constexpr, LIVE: tl.constexpr,
):  # fmt: skip
    at, row, exists = _place(places, TABLES, HIGH)
    total, pointers, columns = _addresses(at, total, pointers, columns, TABLES)
    width = tl.load(at + 8 * TABLES)
    gradient += tl.load(at + 2 * TABLES)
    line = row + tl.load(at + 6 * TABLES)
    start = tl.load(pointers + line, mask=exists, other=0).to(tl.int64)
    length = tl.load(pointers + line + 1, mask=exists, other=0).to(tl.int64) - start
    for weight in range(0, tl.max(length, 0), LIVE):
        k = weight + tl.arange(0, LIVE)
        live = k[None, :] < length[:, None]
        to = start[:, None] + k[None, :]
        c = tl.load(columns + to, mask=live, other=0).to(tl.int64)
        g = tl.load(gradient + row[:, None] * width + c, mask=live, other=0.0)
        tl.store(total + to, tl.load(total + to, mask=live, other=0.0) + g, mask=live)


@triton.jit  # its arguments cannot be annotated
def _add_repeated(
    total, pointers, columns, ordered, places, gradient, count, rows, width, skipped,
    PACKED: tl.constexpr, MANY: tl.constexpr, LIVE: tl.constexpr,
):  # fmt: skip
    # The program at a row's first place adds all its gradients; those at its other places have nothing to do.
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(ordered + place)
    before = tl.load(ordered + place - 1, mask=place > 0, other=-1)
    mine = (row != before) & (row != skipped) & (row >= 0) & (row < rows)
    if PACKED:
        start = tl.load(pointers + row, mask=mine, other=0).to(tl.int64)
        length = tl.load(pointers + row + 1, mask=mine, other=0).to(tl.int64) - start
    else:
        start = row * width
        length = tl.where(mine, width, 0).to(tl.int64)
    for weight in range(0, length, LIVE):
        k = weight + tl.arange(0, LIVE)
        live = k < length
        c = tl.load(columns + start + k, mask=live, other=0).to(tl.int64) if PACKED else k.to(tl.int64)
        added = tl.load(total + start + k, mask=live, other=0.0)
        next_place = place
        more = True
        while more:
            p = next_place + tl.arange(0, MANY)
            same = (p < count) & (tl.load(ordered + p, mask=p < count, other=-1) == row)
            line = tl.load(places + p, mask=same, other=0)
            here = same[:, None] & live[None, :]
            added += tl.sum(tl.load(gradient + line[:, None] * width + c[None, :], mask=here, other=0.0), 0)
            next_place += MANY
            more = tl.sum(same.to(tl.int32), 0) == MANY
        tl.store(total + start + k, added, mask=live)
