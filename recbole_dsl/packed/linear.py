"""``nn.Linear`` with a packed matrix: sparse products where they are faster, else one dense product.

A dense product needs the materialised matrix and does the work of all weights, but at several times the
speed of a sparse one. Which one wins is decided by the nanoseconds per vector that each should take
(:func:`sparse_is_faster`), with the figures that ``benchmarks/linear_product.py`` measures. An input that
is nearly empty, such as a batch of users' interactions, is worth more than an empty matrix: then its zeros
are left out instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..kernels import in_parallel, products
from . import sparse_input
from .lookup import add_table
from .sparse_input import LinearOfNonzeros, mostly_zeros

if TYPE_CHECKING:
    from .group import PackedGroup

DENSE: Final = 0.032
"""Nanoseconds of a dense product per weight and vector, on one core of an AMD EPYC, as the next ones."""

SPARSE: Final = {"vectors": 0.18, "weights": 0.34}
"""Nanoseconds of a sparse product per live weight and vector: for the output and the gradient of the
input, and for the gradient of the weights."""

TRANSPOSED: Final = 2.0
"""Nanoseconds per element of a batch to lay it out in blocks, or to put it back."""

MARGIN: Final = 0.85
"""A sparse product is chosen if it should take at most this share of a dense one's time."""

SMALLEST_BATCH: Final = 16
"""Vectors below which blocks are mostly padding."""


def linear(group: PackedGroup, tensor: int, input: Tensor, bias: Tensor | None) -> Tensor:
    """``input`` (…, in) times the transposed packed matrix (out × in), plus ``bias`` (out,)."""
    product = _fastest(group, tensor, input)
    if product is None:
        return nn.functional.linear(input, group.dense(tensor), bias)
    flat = input.reshape(-1, input.shape[-1]).contiguous()
    out = product.apply(group._token(), flat, group, tensor).view(*input.shape[:-1], -1)
    return out if bias is None else out + bias


def _fastest(group: PackedGroup, tensor: int, input: Tensor) -> Any:
    """The autograd function of the product, None for a dense one."""
    part = group.slices[tensor]
    if not _suits(group, tensor, input):
        return None
    large = part.rows * part.cols >= sparse_input.SMALLEST_MATRIX
    if large and not input.requires_grad and mostly_zeros(input.detach().view(-1, part.cols)):
        return LinearOfNonzeros
    return PackedLinear if _is_faster(group, tensor, "vectors") else None


def _suits(group: PackedGroup, tensor: int, input: Tensor) -> bool:
    """Whether compiled loops take these vectors (…, columns), and they are enough of them."""
    cols = group.slices[tensor].cols
    return (
        group.products == "fastest"
        and input.layout == torch.strided
        and input.shape[-1] == cols
        and input.numel() >= SMALLEST_BATCH * cols
        and input.dtype == group.weight.dtype
        and group.compiled(input)
        and not torch.is_autocast_enabled(input.device.type)
    )


def product_with_whole(
    group: PackedGroup, tensor: int, whole: Tensor, vectors: Tensor, weight: Tensor
) -> Tensor | None:
    """``vectors`` (n × columns) times ``weight``, without a gradient, by live weights alone.

    None where that is no faster, or cannot be: ``weight`` is another view of the dense copy ``whole`` than its
    transpose, or that is not what the weights are now. Users times all items' rows, as full ranking has it.
    """
    part = group.slices[tensor]
    transposed = weight.shape == (part.cols, part.rows) and weight.stride() == (1, part.cols)
    suits = (
        transposed
        and weight.data_ptr() == whole.data_ptr()
        and vectors.layout == torch.strided
        and vectors.dim() == 2
        and _suits(group, tensor, vectors := vectors.contiguous())
        and _is_faster(group, tensor, "vectors")
        and group.is_dense_copy(tensor, whole)
    )
    return multiply(group, tensor, vectors) if suits else None


def sparse_is_faster(rows: int, cols: int, live: int, product: str) -> bool:
    """Whether a sparse product of a matrix (rows × cols, ``live`` weights) takes less time than a dense one.

    Args:
        product: ``"vectors"`` or ``"weights"``, what is computed (a row of :data:`SPARSE`).
    """
    sparse = live * SPARSE[product] + (rows + cols) * TRANSPOSED
    return sparse <= MARGIN * rows * cols * DENSE


def _is_faster(group: PackedGroup, tensor: int, product: str) -> bool:
    part, span = group.slices[tensor], group.span(tensor)
    return sparse_is_faster(part.rows, part.cols, span.stop - span.start, product)


class PackedLinear(torch.autograd.Function):
    """Vectors (n × in) times the transposed packed matrix."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, input: Tensor, group: PackedGroup, tensor: int) -> Tensor:
        ctx.group, ctx.tensor = group, tensor
        ctx.step = group.step_gradient
        ctx.save_for_backward(input, group.weight)  # which torch refuses if it is written to meanwhile
        return multiply(group, tensor, input)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, None, None]:
        group, tensor, grad = ctx.group, ctx.tensor, grad.contiguous()
        total = ctx.step.add_to()
        input, _ = ctx.saved_tensors
        blocks = None
        if group.collects or not _is_faster(group, tensor, "weights"):
            of_weight = grad.t() @ input
            add_table(group, tensor, of_weight, total)
            ctx.step.collect_dense(tensor, of_weight)
        else:
            blocks = in_blocks(grad)
            add_outer(group, tensor, in_blocks(input), blocks, total)
        if not ctx.needs_input_grad[1]:
            return None, None, None, None
        return None, multiply_transposed(group, tensor, grad, blocks), None, None


def multiply(group: PackedGroup, tensor: int, input: Tensor) -> Tensor:
    """``input`` (n × in) times the transposed packed matrix: n × out."""
    width = group.slices[tensor].rows
    return _blockwise(group, tensor, in_blocks(input), (input.shape[0], width), products.multiply)


def multiply_transposed(
    group: PackedGroup, tensor: int, gradient: Tensor, blocks: Tensor | None = None
) -> Tensor:
    """``gradient`` (n × out) times the packed matrix: n × in. ``blocks``: the gradient's, if there."""
    shape = (gradient.shape[0], group.slices[tensor].cols)
    blocks = in_blocks(gradient) if blocks is None else blocks
    return _blockwise(group, tensor, blocks, shape, products.multiply_transposed)


def _blockwise(group: PackedGroup, tensor: int, blocks: Tensor, shape: tuple[int, int], product: Any) -> Tensor:
    first, values = group.slices[tensor].first_row, group.weight.detach()
    out = blocks.new_empty(blocks.shape[0], shape[1], products.LANES)
    vectors = blocks.new_empty(shape)

    def work(start: int, stop: int) -> None:
        product(values, group.row_pointers, group.column_ids, first, blocks[start:stop], out[start:stop])
        products.from_blocks(out, start, stop, vectors)

    in_parallel(work, blocks.shape[0], out.numel())
    return vectors


def add_outer(group: PackedGroup, tensor: int, inputs: Tensor, gradients: Tensor, total: Tensor) -> None:
    """Add the live weights' gradient: of an output's ``gradients`` by ``inputs``, both in blocks."""
    part = group.slices[tensor]

    def work(start: int, stop: int) -> None:
        products.add_outer(
            total, group.row_pointers, group.column_ids, part.first_row, start, stop, inputs, gradients
        )

    in_parallel(work, part.rows, gradients.numel())


def in_blocks(vectors: Tensor) -> Tensor:
    """Vectors (n × features) as blocks × features × LANES; the last block is filled up with zeros."""
    count, features = vectors.shape
    blocks = vectors.new_empty(-(-count // products.LANES), features, products.LANES)

    def work(start: int, stop: int) -> None:
        products.to_blocks(vectors, start, stop, blocks)

    in_parallel(work, blocks.shape[0], blocks.numel())
    return blocks
