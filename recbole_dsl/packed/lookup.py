"""Autograd between packed values and the dense tensors a model computes with.

All functions of a step hang on one node, :class:`~recbole_dsl.packed.gradient.StepGradient`. Each adds
its gradient into that node's buffer and hands nothing on; the node runs last and returns the buffer as
the gradient of the values. So a step needs one gradient of the size of the budget, however many lookups
it makes. Every function runs a compiled loop, or the same in plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels import gpu_rows, in_parallel, rows
from ..kernels.dense_rows import add_dense_rows, without_row

if TYPE_CHECKING:
    from .group import PackedGroup
    from .index import TensorSlice


def _whole(group: PackedGroup, tensor: int, flat: Tensor) -> Tensor | None:
    """The part of ``flat`` (live weights) that belongs to a tensor as rows × columns, if none is dead."""
    if not group.is_full:
        return None
    part = group.slices[tensor]
    return flat[part.first_position :][: part.rows * part.cols].view(part.rows, part.cols)


def read_rows(group: PackedGroup, tensor: int, ids: Tensor) -> Tensor:
    """The rows ``ids`` (n,) int64 of a tensor, n × columns, without a gradient.

    Raises:
        IndexError: a row that the tensor does not have; on a GPU, where the error would have to be waited
            for, such a row is NaN, or fails in torch.
    """
    return _look_up(group, tensor, ids, None)[0]


def _look_up(
    group: PackedGroup, tensor: int, ids: Tensor, padding_idx: int | None
) -> tuple[Tensor, Tensor | None]:
    """The rows, and from a GPU's kernel the lines to which their gradients go (kernels/rows_on_gpu.py)."""
    part, values = group.slices[tensor], group.weight.detach()
    table = _whole(group, tensor, values)
    if table is not None:
        _check_ids(ids, part.rows)
        return table.index_select(0, ids), None
    if group.on_gpu(ids):
        return _read_on_gpu(group, tensor, ids, padding_idx)
    return _read_by_loops(group, tensor, ids), None


def _read_on_gpu(
    group: PackedGroup, tensor: int, ids: Tensor, padding_idx: int | None
) -> tuple[Tensor, Tensor]:
    """The rows, and their lines."""
    part, values = group.slices[tensor], group.weight.detach()
    out = values.new_empty(ids.numel(), part.cols)
    index = values, group.row_pointers, group.column_ids
    return out, gpu_rows().read_rows(*index, part.first_row, part.rows, ids, out, _skipped(padding_idx))


def _skipped(padding_idx: int | None) -> int:
    """The row whose gradient kernels drop, -1 for none."""
    return -1 if padding_idx is None else padding_idx


def _read_by_loops(group: PackedGroup, tensor: int, ids: Tensor) -> Tensor:
    """In compiled loops, or by plain torch, which runs anywhere."""
    part, values = group.slices[tensor], group.weight.detach()
    if not group.compiled(ids):
        _check_ids(ids, part.rows)
        index, target = group.live_rows().of(tensor, ids)
        out = values.new_zeros(ids.numel() * part.cols)
        return out.scatter_(0, target, values.index_select(0, index)).view(-1, part.cols)
    out = values.new_empty(ids.numel(), part.cols)
    last = part.first_row + part.rows

    def read(start: int, stop: int) -> int:
        return rows.read_rows(
            values, group.row_pointers, group.column_ids, part.first_row, last, ids[start:stop], out[start:stop]
        )

    if max(in_parallel(read, ids.numel(), out.numel())) >= 0:
        _check_ids(ids, part.rows)
    return out


def add_rows(
    group: PackedGroup, tensor: int, ids: Tensor, gradient: Tensor, padding_idx: int | None, total: Tensor
) -> Tensor | None:
    """Add the gradient (n × columns) of looked-up rows to that of the values, ``total``.

    Returns where it wrote, (2, n) int64: of every row the first of its values and the end; None for anywhere.
    """
    table = _whole(group, tensor, total)
    if table is not None:
        add_dense_rows(group.kernels, table, ids, gradient, padding_idx)
        return None
    if group.compiled(ids, gradient) and gradient.dtype == total.dtype:
        first = group.slices[tensor].first_row
        spans = ids.new_empty(2, ids.numel())
        csr = group.row_pointers, group.column_ids
        rows.add_rows(total, *csr, first, ids, gradient, _skipped(padding_idx), spans)
        return spans
    if padding_idx is not None:
        ids, gradient = without_row(ids, gradient, padding_idx)
    index, target = group.live_rows().of(tensor, ids)
    total.scatter_add_(0, index, gradient.reshape(-1).index_select(0, target).to(total.dtype))
    return None


class RowLookup(torch.autograd.Function):
    """Rows of a packed tensor as a dense n × columns matrix; reads only their live weights."""

    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        group: PackedGroup,
        tensor: int,
        ids: Tensor,
        padding_idx: int | None,
    ) -> Tensor:
        if ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"row indices of type {ids.dtype}; allowed are torch.int64 and torch.int32")
        ids = ids.long()
        ctx.group, ctx.tensor, ctx.padding_idx = group, tensor, padding_idx
        ctx.step = group.step_gradient
        out, lines = _look_up(group, tensor, ids, padding_idx)
        ctx.save_for_backward(ids, lines)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        ids, lines = ctx.saved_tensors
        grad, group = grad.contiguous(), ctx.group
        if lines is None:
            ctx.step.add_rows(ctx.tensor, ids, grad, ctx.padding_idx)
        else:
            ctx.step.add_rows_later(lines, grad)
        if group.collects:
            if ctx.padding_idx is not None:
                ids, grad = without_row(ids, grad, ctx.padding_idx)
            group.collect_rows(ctx.tensor, ids, grad)
        return None, None, None, None, None


def _check_ids(ids: Tensor, count: int) -> None:
    # On a GPU this check would wait for the device at every lookup; there the gather itself fails.
    if ids.is_cuda or ids.numel() == 0:
        return
    low, high = torch.aminmax(ids)
    if int(low) < 0 or int(high) >= count:
        raise IndexError(f"row ids in [{int(low)}, {int(high)}] for a table of {count} rows")


Tensors = Sequence[tuple["PackedGroup", int]]
"""Packed tensors: each a group and the tensor's number in it."""


def read_tables(tensors: Tensors) -> list[Tensor]:
    """Whole tensors, each rows × columns, without a gradient: on a GPU in one launch."""
    if not all(_by_kernels(group) for group, _ in tensors):
        return [read_table(group, tensor) for group, tensor in tensors]
    return gpu_rows().read_tables([_table(group, tensor, group.weight.detach()) for group, tensor in tensors])


def _by_kernels(group: PackedGroup, *others: Tensor) -> bool:
    """Whether a GPU's kernel reads whole tensors of a group."""
    return not group.is_full and group.on_gpu(*others) and all(o.dtype == group.dtype for o in others)


def _table(group: PackedGroup, tensor: int, values: Tensor) -> Any:
    part = group.slices[tensor]
    index = group.row_pointers, group.column_ids
    return gpu_rows().Table(values, *index, part.first_row, part.rows, part.cols)


def read_table(group: PackedGroup, tensor: int) -> Tensor:
    """A whole tensor, rows × columns, without a gradient."""
    part, values = group.slices[tensor], group.weight.detach()
    table = _whole(group, tensor, values)
    if table is not None:
        return table.clone()
    if group.on_gpu():
        return gpu_rows().read_tables([_table(group, tensor, values)])[0]
    if not group.compiled():
        out = values.new_zeros(part.rows * part.cols)
        out.scatter_(0, group.flat_positions(tensor), values[group.span(tensor)])
        return out.view(part.rows, part.cols)
    out = values.new_empty(part.rows, part.cols)

    def read(start: int, stop: int) -> None:
        rows.read_table(values, group.row_pointers, group.column_ids, part.first_row, start, stop, out)

    in_parallel(read, part.rows, out.numel())
    return out


def add_tables(tensors: Tensors, gradients: Sequence[Tensor], totals: Sequence[Tensor]) -> None:
    """Add the gradients of whole tensors, each rows × columns, to those of their groups' values, ``totals``.

    On a GPU in one launch.
    """
    each = list(zip(tensors, gradients, totals, strict=True))
    if all(_by_kernels(group, gradient, total) for (group, _), gradient, total in each):
        gpu_rows().add_tables([_table(*tensor, total) for tensor, _, total in each], gradients)
        return
    for tensor, gradient, total in each:
        add_table(*tensor, gradient, total)


def add_table(group: PackedGroup, tensor: int, gradient: Tensor, total: Tensor) -> None:
    """Add the gradient of a whole tensor (rows × columns) to that of the values, ``total``."""
    table = _whole(group, tensor, total)
    if table is not None:
        table += gradient.to(total.dtype)
        return
    if _by_kernels(group, gradient, total):
        gpu_rows().add_tables([_table(group, tensor, total)], [gradient])
        return
    if not (group.compiled(gradient) and gradient.dtype == total.dtype):
        live = gradient.reshape(-1).index_select(0, group.flat_positions(tensor))
        total[group.span(tensor)] += live.to(total.dtype)
        return
    part = group.slices[tensor]

    def add(start: int, stop: int) -> None:
        rows.add_table(total, group.row_pointers, group.column_ids, part.first_row, start, stop, gradient)

    in_parallel(add, part.rows, gradient.numel())


class Materialise(torch.autograd.Function):
    """Whole packed tensors, dense, in their own shapes; the tokens are those of their groups."""

    @staticmethod
    def forward(ctx: Any, tensors: Tensors, *tokens: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.tensors = tensors
        ctx.steps = [group.step_gradient for group, _ in tensors]
        tables = zip(tensors, read_tables(tensors), strict=True)
        return tuple(table.view(group.slices[tensor].shape) for (group, tensor), table in tables)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
        reached = [
            (tensor, _as_table(grad, tensor[0].slices[tensor[1]]), step.add_to())
            for tensor, grad, step in zip(ctx.tensors, grads, ctx.steps, strict=True)
            if grad is not None
        ]
        if reached:
            add_tables(*zip(*reached, strict=True))
        for (group, tensor), gradient, _ in reached:
            group.collect_dense(tensor, gradient)
        return (None,) * (1 + len(grads))


def _as_table(gradient: Tensor, part: TensorSlice) -> Tensor:
    if gradient.is_sparse:  # of F.embedding(ids, weight, sparse=True)
        gradient = gradient.to_dense()
    return gradient.reshape(part.rows, part.cols).contiguous()
