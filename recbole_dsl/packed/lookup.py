"""Autograd between packed values and the dense tensors a model computes with.

All functions of a step hang on one node, :class:`StepGradient`. Each adds its gradient into that
node's buffer and hands nothing on; the node runs last and returns the buffer as the gradient of the
values. So a step allocates one gradient of the size of the budget, however many lookups it makes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import SecondOrderError, StaleGraphError

if TYPE_CHECKING:
    from .group import PackedGroup


def backward_pass() -> int:
    """A number that tells backward passes apart; -1 outside of one."""
    return torch._C._current_graph_task_id()


class StepGradient:
    """The gradient buffer that a step's lookups share, and its place in the autograd graph."""

    def __init__(self, group: PackedGroup) -> None:
        self.group = group
        self.topology = group.column_ids._version
        self.buffer: Tensor | None = None
        self.task = -1

    def connect(self) -> Tensor:
        """An empty tensor that lookups take as input to be connected with the values."""
        return _Connect.apply(self.group.weight, self)

    def add_to(self) -> Tensor:
        """The buffer of the running backward pass, zero at its start.

        Raises:
            StaleGraphError: the topology is not that of the forward pass any more.
        """
        if self.group.column_ids._version != self.topology:
            raise StaleGraphError(
                f"backward through sparse group {self.group.name!r} after its topology was updated; "
                "allowed is a backward pass before the optimizer step that follows its forward pass."
            )
        task = backward_pass()
        # Another task means the last pass broke off before it reached the values.
        if self.buffer is None or self.task != task:
            self.buffer, self.task = torch.zeros_like(self.group.weight), task
        return self.buffer

    def take(self) -> Tensor | None:
        """The finished gradient of the values; None if no lookup was reached."""
        buffer, self.buffer = self.buffer, None
        self.group.clear_caches()
        return buffer


class _Connect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, step: StepGradient) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.step = step
        return values.new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor | None, None]:
        if torch.is_grad_enabled():  # create_graph=True, whose graph would end here without a word
            raise SecondOrderError(
                f"sparse group {ctx.step.group.name!r} has no second-order gradients of its packed "
                "weights; allowed are create_graph=True with respect to looked-up rows, and "
                "dsl_storage='masked'."
            )
        return ctx.step.take(), None


def locate(group: PackedGroup, tensor: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    """For all live weights of the rows ``ids`` (n,): their index among the group's values, and
    their flat position in an n × columns matrix. Both int64."""
    # index_select and scatter_ are several times faster on a CPU than indexing with brackets.
    part = group.slices[tensor]
    rows = ids + part.first_row
    starts = group.row_pointers.index_select(0, rows).long()
    lengths = group.row_pointers.index_select(0, rows + 1).long() - starts
    out_rows = torch.repeat_interleave(lengths)
    index = (starts - lengths.cumsum(0) + lengths).index_select(0, out_rows)
    index += torch.arange(index.numel(), device=ids.device)
    return index, out_rows.mul_(part.cols).add_(group.column_ids.index_select(0, index))


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
        rows, cols = group.slices[tensor].rows, group.slices[tensor].cols
        _check_ids(ids, rows)
        ids = ids.long()
        index, target = locate(group, tensor, ids)
        values = group.weight.detach()
        out = values.new_zeros(ids.numel() * cols)
        out.scatter_(0, target, values.index_select(0, index))
        ctx.group, ctx.tensor, ctx.padding_idx = group, tensor, padding_idx
        ctx.step = group._step[1] if group._step else None
        ctx.save_for_backward(ids, index, target)
        return out.view(ids.numel(), cols)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        ids, index, target = ctx.saved_tensors
        if ctx.padding_idx is not None:
            grad = grad.masked_fill((ids == ctx.padding_idx).unsqueeze(1), 0.0)
        buffer = ctx.step.add_to()
        live = grad.reshape(-1).index_select(0, target)
        buffer.scatter_add_(0, index, live.to(buffer.dtype))
        ctx.group.collect_rows(ctx.tensor, ids, grad)
        return None, None, None, None, None


def _check_ids(ids: Tensor, rows: int) -> None:
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"row indices of type {ids.dtype}; allowed are torch.int64 and torch.int32")
    # On a GPU this check would wait for the device at every lookup; there the gather itself fails.
    if ids.is_cuda or ids.numel() == 0:
        return
    low, high = torch.aminmax(ids)
    if int(low) < 0 or int(high) >= rows:
        raise IndexError(f"row ids in [{int(low)}, {int(high)}] for a table of {rows} rows")


class Materialise(torch.autograd.Function):
    """A whole packed tensor, dense, in its own shape."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, group: PackedGroup, tensor: int) -> Tensor:
        part = group.slices[tensor]
        values = group.weight.detach()
        out = values.new_zeros(part.rows * part.cols)
        out.scatter_(0, group.flat_positions(tensor), values[group.span(tensor)])
        ctx.group, ctx.tensor = group, tensor
        ctx.step = group._step[1] if group._step else None
        return out.view(part.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        group, tensor = ctx.group, ctx.tensor
        if grad.is_sparse:  # of F.embedding(ids, weight, sparse=True)
            grad = grad.to_dense()
        buffer = ctx.step.add_to()
        live = grad.reshape(-1).index_select(0, group.flat_positions(tensor))
        buffer[group.span(tensor)] += live.to(buffer.dtype)
        group.collect_dense(tensor, grad)
        return None, None, None
