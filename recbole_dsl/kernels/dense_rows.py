"""Gradients of looked-up rows added to a dense table, by whichever kernel takes them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import compiled, gpu_rows, loop, on_gpu


def add_dense_rows(
    choice: str, table: Tensor, ids: Tensor, gradient: Tensor, skipped: int | None = None
) -> None:
    """Add ``gradient`` (n × columns) to the rows ``ids`` (n,) int64 of ``table`` (rows × columns).

    Repeated rows add up in their order.

    Args:
        choice: the setting ``dsl_kernels``.
        skipped: a row whose gradient is dropped, None for none.
    """
    gradient = gradient.to(table.dtype)
    if on_gpu(choice, table, ids, gradient):
        gpu_rows().add_dense_rows(table, ids, gradient, -1 if skipped is None else skipped)
        return
    if skipped is not None:
        ids, gradient = without_row(ids, gradient, skipped)
    if compiled(choice, table, ids, gradient):
        _add(table, ids, gradient)
    else:
        table.index_add_(0, ids, gradient)


def without_row(ids: Tensor, gradient: Tensor, skipped: int) -> tuple[Tensor, Tensor]:
    """The rows ``ids`` (n,) and their gradients (n × columns) but those of one row."""
    others = (ids != skipped).nonzero().flatten()
    return ids.index_select(0, others), gradient.index_select(0, others)


@loop
def _add(table: Any, ids: Any, gradient: Any) -> None:
    for i in range(ids.size):
        target, source = table[ids[i]], gradient[i]
        for c in range(target.size):
            target[c] += source[c]
