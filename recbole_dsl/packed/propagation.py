"""Rows of packed tables after they have been propagated through a graph, some columns at a time.

With tables E of a group's tensors one below the other and a sparse matrix A, a graph model computes with the
mean P = (E + A E + … + A^L E) / (L + 1), of which a training step needs the rows of its batch. Columns do
not see each other, so all of it works on a few of them: what a step holds does not grow with their number but
for the rows it asks for. The last product makes only these rows. In wide tables, whose rows have few live
weights in a block, the first product goes through live weights, and the backward pass, which is the same
backwards, makes the gradient of live weights alone unless growth scores are summed up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..graph.matrix import Matrix, csr_product
from ..kernels import columns, in_parallel
from ..kernels.csr import CSR, pointers_of
from .group import PackedGroup
from .lookup import add_rows, read_rows

COLUMNS_PER_BLOCK: Final = 64
"""Columns that are propagated together: of some ten thousand rows they lie in a processor's cache."""

LIVE_PER_BLOCK: Final = 1.5
"""Live weights of a row in a block, on average, up to which a product that goes through them is as fast as a
dense one, in compiled loops."""

MOST_ENTRIES: Final = 0.5
"""Share of the matrix's entries up to which it is worth it to make the last product of some rows alone."""


@dataclass(frozen=True)
class Table:
    """A packed tensor (``group``, its number there); of all rows, its own begin at ``offset``."""

    group: PackedGroup
    tensor: int
    offset: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.group.slices[self.tensor].rows

    @property
    def first_row(self) -> int:
        """Of the tensor in its group."""
        return self.group.slices[self.tensor].first_row

    @property
    def index(self) -> tuple[Tensor, Tensor]:
        """Row pointers and column ids of the group."""
        return self.group.row_pointers, self.group.column_ids


@dataclass(frozen=True)
class Propagation:
    """P = (E + A E + … + A^L E) / (L + 1) of packed tables.

    ``tables``: of equally many columns, one below the other; ``matrix``: A, square, of as many rows;
    ``layers``: L ≥ 1; ``kernels``: the setting ``dsl_kernels``.
    """

    tables: Sequence[Table]
    matrix: Matrix
    layers: int
    kernels: str

    @property
    def columns(self) -> int:
        """Of every table."""
        first = self.tables[0]
        return first.group.slices[first.tensor].cols

    @property
    def nodes(self) -> int:
        """Rows of all tables."""
        return self.matrix.width

    def rows(self, ids: Tensor) -> Tensor:
        """The rows ``ids`` (n,) int64 of P, n × columns, differentiable; no id twice."""
        tokens = [table.group._token() for table in self.tables]
        return _PropagatedRows.apply(self, ids, *tokens)

    def whole(self) -> Tensor:
        """P, without a gradient."""
        first = self.tables[0].group.weight
        out = first.new_empty(self.nodes, self.columns, requires_grad=False)
        for low, high in self.blocks():
            layer = self.read(low, high)
            total = layer.clone()
            for _ in range(self.layers):
                layer = self.times(self.matrix, layer)
                total += layer
            out[:, low:high] = total.div_(self.layers + 1)
        return out

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Columns, some after the other: first and last + 1."""
        for low in range(0, self.columns, COLUMNS_PER_BLOCK):
            yield low, min(low + COLUMNS_PER_BLOCK, self.columns)

    def own_rows(self, ids: Tensor) -> Iterator[tuple[Table, Tensor, Tensor]]:
        """Every table, which of ``ids`` are in it (places in ids), and their rows there."""
        for table in self.tables:
            places = ((ids >= table.offset) & (ids < table.offset + table.rows)).nonzero().flatten()
            yield table, places, ids.index_select(0, places) - table.offset

    def goes_by_live_weights(self) -> bool:
        """Whether so few of a row's weights live in a block that going through them beats a dense product."""
        if not all(table.group.compiled(*self.matrix.parts) for table in self.tables):
            return False
        blocks = -(-self.columns // COLUMNS_PER_BLOCK)
        live = sum(table.group.live_per_tensor()[table.tensor] for table in self.tables)
        return live <= LIVE_PER_BLOCK * blocks * self.nodes

    def read(self, low: int, high: int) -> Tensor:
        """Columns of E, dense."""
        out = self.tables[0].group.weight.new_zeros(self.nodes, high - low, requires_grad=False)
        for table in self.tables:
            values = table.group.weight.detach()
            if table.group.compiled(out):
                _on_rows(columns.read_columns, values, table, low, high, out)
            else:
                live, rows, column = _live(table, low, high)
                out[rows, column] = values[live]
        return out

    def first_layer(self, low: int, high: int) -> Tensor:
        """Columns of A E."""
        out = self.tables[0].group.weight.new_zeros(self.nodes, high - low, requires_grad=False)
        back = self.matrix.transpose(self.kernels)
        for table in self.tables:
            fixed = (table.group.weight.detach(), *table.index, table.first_row, table.rows, *back.parts)

            def spread(start: int, stop: int, fixed: Any = fixed, table: Table = table) -> None:
                columns.spread_columns(*fixed, table.offset, low, low + start, low + stop, out)

            in_parallel(spread, high - low, out.numel())
        return out

    def add(self, gradient: Tensor, low: int, high: int, totals: Sequence[Tensor]) -> None:
        """Add columns of the gradient of E to those of the tables' values, ``totals``, where weights live."""
        for table, total in zip(self.tables, totals, strict=True):
            if table.group.compiled(gradient, total):
                _on_rows(columns.add_columns, total, table, low, high, gradient)
            else:
                live, rows, column = _live(table, low, high)
                total[live] += gradient[rows, column].to(total.dtype)

    def add_last(self, gradient: Tensor, low: int, high: int, totals: Sequence[Tensor]) -> None:
        """The same of Aᵀ ``gradient``, made only where weights live."""
        back = self.matrix.transpose(self.kernels)
        for table, total in zip(self.tables, totals, strict=True):
            _on_rows(columns.gather_columns, total, table, low, high, *back.parts, gradient)

    def times(self, matrix: Matrix, dense: Tensor) -> Tensor:
        """The product with A or its transpose, without a gradient."""
        known = matrix.transpose(self.kernels).parts if matrix.finite else ()
        return csr_product(matrix.parts, known, dense, self.kernels)


def _on_rows(loop: Any, values: Tensor, table: Table, low: int, high: int, *others: Tensor) -> None:
    """A loop of :mod:`recbole_dsl.kernels.columns` over ranges of a table's rows."""

    def run(start: int, stop: int) -> None:
        loop(values, *table.index, table.first_row, table.offset, low, high, start, stop, *others)

    in_parallel(run, table.rows, table.rows * (high - low))


def _live(table: Table, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of a table's live weights in some columns: places in the group's values, rows of all tables, columns."""
    span = table.group.span(table.tensor)
    flat = table.group.flat_positions(table.tensor)
    column = flat % table.group.slices[table.tensor].cols
    rows = torch.div(flat, table.group.slices[table.tensor].cols, rounding_mode="floor")
    some = ((column >= low) & (column < high)).nonzero().flatten()
    return some + span.start, rows[some] + table.offset, column[some] - low


class _PropagatedRows(torch.autograd.Function):
    """Rows of P; the tokens are those of the tables' groups."""

    @staticmethod
    def forward(ctx: Any, plan: Propagation, ids: Tensor, *tokens: Tensor) -> Tensor:
        ctx.plan, ctx.steps = plan, [table.group.step_gradient for table in plan.tables]
        ctx.save_for_backward(ids)
        out = plan.tables[0].group.weight.new_empty(ids.numel(), plan.columns, requires_grad=False)
        for table, places, rows in plan.own_rows(ids):
            out[places] = read_rows(table.group, table.tensor, rows)
        some, by_live = rows_of(plan.matrix, ids, MOST_ENTRIES), plan.goes_by_live_weights()
        ctx.by_live = by_live
        for low, high in plan.blocks():
            mine = out[:, low:high]
            layer = plan.first_layer(low, high) if by_live else plan.times(plan.matrix, plan.read(low, high))
            mine += layer.index_select(0, ids)
            for _ in range(plan.layers - 2):
                layer = plan.times(plan.matrix, layer)
                mine += layer.index_select(0, ids)
            if plan.layers > 1 and some is None:
                mine += plan.times(plan.matrix, layer).index_select(0, ids)
            elif plan.layers > 1:
                mine += csr_product(some, (), layer, plan.kernels)
        return out.div_(plan.layers + 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        plan, (ids,) = ctx.plan, ctx.saved_tensors
        gradient = gradient / (plan.layers + 1)
        totals = [step.add_to() for step in ctx.steps]
        parts = list(plan.own_rows(ids))
        for (table, places, rows), total in zip(parts, totals, strict=True):
            add_rows(table.group, table.tensor, rows, gradient.index_select(0, places), None, total)
        scored = [table for table in plan.tables if table.group.collects]
        back = plan.matrix.transpose(plan.kernels)
        own = gradient.new_zeros(plan.nodes, min(COLUMNS_PER_BLOCK, plan.columns))
        for low, high in plan.blocks():
            if high - low < own.shape[1]:
                own = own[:, : high - low].contiguous()
            mine = gradient[:, low:high].contiguous()
            layer = own.index_copy_(0, ids, mine)
            for _ in range(plan.layers - 1):
                layer = plan.times(back, layer).index_add_(0, ids, mine)
            if ctx.by_live and not scored:
                plan.add_last(layer, low, high, totals)
                continue
            layer = plan.times(back, layer)
            plan.add(layer, low, high, totals)
            layer.index_add_(0, ids, mine)
            for table in scored:
                rows = layer[table.offset : table.offset + table.rows]
                table.group.collect_columns(table.tensor, low, rows, is_own=True)
        return (None,) * (2 + len(ctx.steps))


def rows_of(matrix: Matrix, ids: Tensor, most: float = 1.0) -> CSR | None:
    """The rows ``ids`` (n,) int64 of a matrix as one of their own.

    None if they have more than ``most`` of its entries, so that a product with all of it is as good.
    """
    starts, ends = matrix.pointers.index_select(0, ids), matrix.pointers.index_select(0, ids + 1)
    counts = (ends - starts).long()
    if int(counts.sum()) > most * matrix.values.numel():
        return None
    pointers = pointers_of(counts, matrix.pointers.dtype)
    places = torch.arange(int(pointers[-1]), device=ids.device)
    places += torch.repeat_interleave(starts.long() - pointers[:-1].long(), counts)
    return pointers, matrix.columns.index_select(0, places), matrix.values.index_select(0, places)
