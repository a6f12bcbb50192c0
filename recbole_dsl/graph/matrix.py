"""A sparse matrix in compressed rows (CSR), its transpose, and their products as operators of torch's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..kernels import csr

LARGEST_INT32 = 2**31 - 1

_library = torch.library.Library("recbole_dsl", "DEF")
_library.define("csr_product(Tensor[] matrix, Tensor[] transpose, Tensor dense, str kernels) -> Tensor")
_library.impl("csr_product", csr.product, "CompositeExplicitAutograd")
csr_product = torch.ops.recbole_dsl.csr_product.default
"""An operator of torch's, so that whoever counts operators sees it (costs.py)."""


class Matrix:
    """A sparse matrix in compressed rows, columns ascending in every row, and its transpose once asked for.

    Args:
        pointers, columns, values: as in :mod:`recbole_dsl.kernels.csr`.
        width: number of columns.
    """

    def __init__(self, pointers: Tensor, columns: Tensor, values: Tensor, width: int) -> None:
        self.pointers, self.columns, self.values, self.width = pointers, columns, values, width
        self.finite = math.isfinite(float(values.sum()))
        self._transposed: Matrix | None = None
        self.symmetric: bool | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.pointers.numel() - 1, self.width

    @property
    def parts(self) -> csr.CSR:
        """Pointers, columns and values."""
        return self.pointers, self.columns, self.values

    def times(self, dense: Tensor, kernels: str) -> Tensor:
        """The product, differentiable with respect to ``dense`` (any number of times)."""
        needed = torch.is_grad_enabled() and dense.requires_grad
        return _Product.apply(dense, self.values, self, self.transpose(kernels) if needed else None, kernels)

    def transpose(self, kernels: str) -> Matrix:
        """The matrix itself if it equals its transpose exactly; else that, which is kept."""
        if self.symmetric:
            return self
        if self._transposed is None:
            parts = csr.transposed(*self.parts, self.width, kernels)
            self.symmetric = self.shape[0] == self.width and all(map(torch.equal, self.parts, parts))
            if self.symmetric:
                return self
            self._transposed = Matrix(*parts, self.shape[0])
            self._transposed._transposed, self._transposed.symmetric = self, False
        return self._transposed


class _Product(torch.autograd.Function):
    """``values`` are an input so that a write between forward and backward is an error, as in torch."""

    @staticmethod
    def forward(
        ctx: Any, dense: Tensor, values: Tensor, matrix: Matrix, transpose: Matrix | None, kernels: str
    ) -> Tensor:
        ctx.save_for_backward(values)
        ctx.matrix, ctx.transpose, ctx.kernels = matrix, transpose, kernels
        known = transpose.parts if transpose is not None and matrix.finite else ()
        return csr_product(matrix.parts, known, dense, kernels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):  # a backward pass may be called under it
            product = _Product.apply(grad, ctx.transpose.values, ctx.transpose, ctx.matrix, ctx.kernels)
        return product, None, None, None, None


def compress(sparse: Tensor, sort: bool) -> Matrix | None:
    """A two-dimensional COO or CSR tensor as :class:`Matrix`; None if its entries are out of order.

    Args:
        sort: put them in order then.
    """
    rows, width = sparse.shape
    if sparse.layout == torch.sparse_csr:
        columns, values = sparse.col_indices(), sparse.values()
        pointers = sparse.crow_indices()
    else:
        (lines, columns), values = sparse._indices(), sparse._values()
        if not sparse.is_coalesced():
            places = lines * width + columns
            if not bool((places[1:] >= places[:-1]).all()):
                if not sort:
                    return None
                order = torch.sort(places, stable=True).indices
                lines, columns, values = lines[order], columns[order], values[order]
        pointers = csr.pointers_of(torch.bincount(lines, minlength=rows), torch.int64)
    _check_bounds(columns, width)
    small = max(rows, width, values.numel()) < LARGEST_INT32
    index = torch.int32 if small else torch.int64
    return Matrix(pointers.to(index), columns.to(index).contiguous(), values.contiguous(), width)


def _check_bounds(columns: Tensor, width: int) -> None:
    """The compiled loops do not look."""
    if columns.numel():
        low, high = torch.aminmax(columns)
        if int(low) < 0 or int(high) >= width:
            raise IndexError(f"column ids in [{int(low)}, {int(high)}] in a sparse matrix of {width} columns")
