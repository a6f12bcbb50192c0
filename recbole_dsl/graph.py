"""Products of a model's sparse matrices with dense ones, without a word changed in the model.

RecBole keeps adjacencies as COO tensors that are not coalesced. Their product is slow, and its backward
pass multiplies with a transpose that is no better. While :meth:`GraphProducts.active` holds, such products
(``torch.sparse.mm``, ``torch.mm``, ``@`` …) go through the matrix in compressed rows instead, and the
backward pass through the same matrix where it is symmetric, through a cached transpose where it is not.

A matrix is converted at its first product, or at its second if its entries have to be sorted for it, and
is kept as long as the model keeps the tensor. The result is that of the model's own product but for the
order of summation. Matrices that take part in a gradient, half precision and autocast are left to torch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from .kernels import csr

PRODUCTS = frozenset(
    {
        torch.sparse.mm,
        torch.spmm,
        torch.mm,
        torch.matmul,
        Tensor.mm,
        Tensor.matmul,
        Tensor.__matmul__,
    }
)
"""What is looked at; all take the sparse matrix first and the dense one second."""

TYPES = (torch.float32, torch.float64)
LARGEST_INT32 = 2**31 - 1

_library = torch.library.Library("recbole_dsl", "DEF")
_library.define(
    "csr_product(Tensor pointers, Tensor columns, Tensor values, Tensor dense, bool skip_zeros, str kernels)"
    " -> Tensor"
)
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

    def times(self, dense: Tensor, kernels: str) -> Tensor:
        """The product, differentiable with respect to ``dense`` (any number of times)."""
        return _Product.apply(dense, self.values, self, kernels)

    def transpose(self, kernels: str) -> Matrix:
        """The matrix itself if it equals its transpose exactly; else that, which is kept."""
        if self.symmetric:
            return self
        if self._transposed is None:
            parts = csr.transposed(self.pointers, self.columns, self.values, self.width, kernels)
            mine = (self.pointers, self.columns, self.values)
            self.symmetric = self.shape[0] == self.width and all(map(torch.equal, mine, parts))
            if self.symmetric:
                return self
            self._transposed = Matrix(*parts, self.shape[0])
        return self._transposed


class _Product(torch.autograd.Function):
    """``values`` are an input so that a write between forward and backward is an error, as in torch."""

    @staticmethod
    def forward(ctx: Any, dense: Tensor, values: Tensor, matrix: Matrix, kernels: str) -> Tensor:
        ctx.save_for_backward(values)
        ctx.matrix, ctx.kernels = matrix, kernels
        return csr_product(matrix.pointers, matrix.columns, matrix.values, dense, matrix.finite, kernels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        _ = ctx.saved_tensors
        return ctx.matrix.transpose(ctx.kernels).times(grad, ctx.kernels), None, None, None


class GraphProducts:
    """The converted matrices of a model, and the mode in which its products use them.

    Args:
        kernels: the setting ``dsl_kernels``.
    """

    def __init__(self, kernels: str = "auto") -> None:
        self.kernels = kernels
        self._known: Any = WeakIdKeyDictionary()

    @contextlib.contextmanager
    def active(self, model: nn.Module) -> Iterator[None]:
        """Take over products of this thread while a model computes; nothing if it has no sparse matrix."""
        if not holds_sparse(model):
            yield
            return
        with _Interception(self):
            yield

    def times(self, sparse: Any, dense: Any) -> Tensor | None:
        """The product, or None if it is left to torch."""
        with torch._C.DisableTorchFunctionSubclass():
            if not _can_take(sparse, dense):
                return None
            matrix = self.matrix(sparse)
            if matrix is None:
                return None
            plain = dense if type(dense) is Tensor else dense.as_subclass(Tensor)
            return matrix.times(plain, self.kernels)

    def matrix(self, sparse: Tensor) -> Matrix | None:
        """A COO or CSR tensor in compressed rows; None at first sight if it has to be sorted."""
        key = (sparse._version, sparse._nnz())
        known = self._known.get(sparse)
        if known is not None and known[0] == key and known[1] is not None:
            return known[1]
        seen = known is not None and known[0] == key
        matrix = compress(sparse, sort=seen)
        self._known[sparse] = (key, matrix)
        return matrix


class _Interception(TorchFunctionMode):
    def __init__(self, products: GraphProducts) -> None:
        super().__init__()
        self.products = products

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in PRODUCTS and len(args) == 2 and not kwargs and not torch.compiler.is_compiling():
            product = self.products.times(*args)
            if product is not None:
                return product
        return func(*args, **(kwargs or {}))


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


def _can_take(sparse: Any, dense: Any) -> bool:
    """Whether these are a matrix without gradient and a dense one that multiply as they are."""
    return (
        isinstance(sparse, Tensor)
        and isinstance(dense, Tensor)
        and sparse.layout in (torch.sparse_coo, torch.sparse_csr)
        and dense.layout == torch.strided
        and sparse.dim() == dense.dim() == 2
        and (sparse.layout == torch.sparse_csr or sparse.sparse_dim() == 2)
        and not sparse.requires_grad
        and sparse.dtype == dense.dtype
        and sparse.dtype in TYPES
        and sparse.device == dense.device
        and sparse.shape[1] == dense.shape[0]
        and not torch.is_autocast_enabled(sparse.device.type)
        and not sparse.is_inference()
    )


def holds_sparse(model: nn.Module) -> bool:
    """Whether a module has a sparse matrix among its attributes: torch's, or scipy's to make one from."""
    return any(_is_sparse(value) for module in model.modules() for value in vars(module).values())


def _is_sparse(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.layout != torch.strided
    if isinstance(value, dict):
        return any(_is_sparse(v) for v in value.values())
    if isinstance(value, list | tuple):
        return any(_is_sparse(v) for v in value)
    return hasattr(value, "tocoo")
