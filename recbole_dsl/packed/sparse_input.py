"""``nn.Linear`` with a packed matrix on vectors that are mostly zeros: what users have interacted with.

The zeros of the input are left out, which saves more than the dead weights would, and as much at any
density. The matrix is read dense and transposed, so that one input selects one row of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels import in_parallel, products
from .lookup import add_table, read_table

if TYPE_CHECKING:
    from .group import PackedGroup

LARGEST_SHARE: Final = 0.04
"""Share of non-zeros up to which leaving out the zeros is faster than a dense product, on an
AMD EPYC (``benchmarks/linear_product.py``)."""

SAMPLE: Final = 64
"""Vectors in which the share is counted, evenly spread."""


SMALLEST_MATRIX: Final = 2**14
"""Weights below which looking for zeros costs more than leaving them out saves."""


def mostly_zeros(vectors: Tensor) -> bool:
    """Whether so few of the elements of ``vectors`` (n × features) are not zero."""
    sample = vectors[:: max(1, vectors.shape[0] // SAMPLE)]
    return int(sample.count_nonzero()) <= LARGEST_SHARE * sample.numel()


class LinearOfNonzeros(torch.autograd.Function):
    """Vectors (n × in, mostly zeros, no gradient asked) times the transposed packed matrix."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, input: Tensor, group: PackedGroup, tensor: int) -> Tensor:
        ctx.group, ctx.tensor = group, tensor
        ctx.step = group.step_gradient
        ctx.save_for_backward(input)
        matrix = read_table(group, tensor).t().contiguous()
        out = matrix.new_empty(input.shape[0], matrix.shape[1])

        def multiply(start: int, stop: int) -> None:
            products.multiply_nonzeros(input, matrix, start, stop, out)

        in_parallel(multiply, input.shape[0], out.numel())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        (input,) = ctx.saved_tensors
        grad, group = grad.contiguous(), ctx.group
        total = ctx.step.add_to()
        transposed = grad.new_zeros(input.shape[1], grad.shape[1])

        def add(start: int, stop: int) -> None:
            products.add_outer_nonzeros(input, grad, start, stop, transposed)

        in_parallel(add, input.shape[1], transposed.numel())
        of_weight = transposed.t().contiguous()
        add_table(group, ctx.tensor, of_weight, total)
        ctx.step.collect_dense(ctx.tensor, of_weight)
        return None, None, None, None
