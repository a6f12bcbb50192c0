"""Products of a model's sparse matrices with dense ones, without a word changed in the model.

RecBole keeps adjacencies as COO tensors that are not coalesced. Their product is slow, and its backward
pass multiplies with a transpose that is no better. While :meth:`GraphProducts.active` holds, such products
(``torch.sparse.mm``, ``torch.mm``, ``@`` …) go through the matrix in compressed rows instead, and the
backward pass through the same matrix where it is symmetric, through a cached transpose where it is not.

A matrix is converted at its first product, or at its second if its entries have to be sorted for it, and
is kept as long as the model keeps the tensor. The result is that of the model's own product but for the
order of summation. Matrices that take part in a gradient and half precision are left to torch.
RecBole's models then take the mean over their layers, which needs no stack of them (:mod:`.layers`).
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from .layers import Layers, stackable
from .matrix import Matrix, compress, csr_product

__all__ = ["GraphProducts", "Matrix", "compress", "csr_product", "holds_sparse"]

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
FIRST_ENTRIES = 32
"""Of a container that is searched for sparse matrices."""


class GraphProducts:
    """The converted matrices of a model, and the mode in which its products use them.

    Args:
        kernels: the setting ``dsl_kernels``.
        layers_of: package in whose functions ``torch.stack(..., dim=1)`` is put off (:class:`.layers.Layers`).
            Not for code that nobody has looked at: what is put off is no ordinary tensor.
    """

    def __init__(self, kernels: str = "auto", layers_of: str = "recbole.model") -> None:
        self.kernels, self.layers_of = kernels, f"{layers_of}."
        self._known: Any = WeakIdKeyDictionary()
        self._model: nn.Module | None = None

    @contextlib.contextmanager
    def active(self, model: nn.Module) -> Iterator[None]:
        """Take over products of this thread while a model computes; nothing if it has no sparse matrix."""
        if not holds_sparse(model):
            yield
            return
        self._model = model
        try:
            with _Interception(self):
                yield
        finally:
            self._model = None

    def times(self, sparse: Any, dense: Any) -> Tensor | None:
        """The product, or None if it is left to torch."""
        with torch._C.DisableTorchFunctionSubclass():
            if not _can_take(sparse, dense):
                return None
            mixed = _is_mixed(sparse)
            matrix = self.matrix(sparse, at_once=mixed)
            if matrix is None:
                return None
            plain = dense if type(dense) is Tensor else dense.as_subclass(Tensor)
            if not mixed:
                return matrix.times(plain, self.kernels)
            with torch.autocast(
                sparse.device.type, enabled=False
            ):  # torch has no gradient of a product in half precision
                return matrix.times(plain.to(sparse.dtype), self.kernels)

    def matrix(self, sparse: Tensor, at_once: bool = False) -> Matrix | None:
        """A COO or CSR tensor in compressed rows; None at first sight if it has to be sorted for one product.

        One that the model keeps is sorted at first sight, so that a run that is taken up uses the same
        products as one that was not stopped. ``at_once``: so is any other.
        """
        key = (sparse._version, sparse._nnz())
        known = self._known.get(sparse)
        if known is not None and known[0] == key and known[1] is not None:
            return known[1]
        seen = known is not None and known[0] == key
        matrix = compress(sparse, sort=seen or at_once or self._is_kept(sparse))
        self._known[sparse] = (key, matrix)
        return matrix

    def _is_kept(self, sparse: Tensor) -> bool:
        """Whether the model holds this very tensor."""
        return self._model is not None and _holds(self._model, lambda value: value is sparse)


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
        elif func is torch.stack and self._may_put_off(args, kwargs, sys._getframe(1)):
            return Layers.of(args[0])
        return func(*args, **(kwargs or {}))

    def _may_put_off(self, args: tuple, kwargs: dict[str, Any] | None, caller: FrameType) -> bool:
        module = caller.f_globals.get("__name__", "")
        if torch.compiler.is_compiling() or not module.startswith(self.products.layers_of):
            return False
        with torch._C.DisableTorchFunctionSubclass():
            return len(args) == 1 and kwargs == {"dim": 1} and stackable(args[0])


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
        and sparse.dtype in TYPES
        and (sparse.dtype == dense.dtype or (dense.is_floating_point() and _is_mixed(sparse)))
        and sparse.device == dense.device
        and sparse.shape[1] == dense.shape[0]
        and not sparse.is_inference()
    )


def _is_mixed(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)


def holds_sparse(model: nn.Module) -> bool:
    """Whether a module has a sparse matrix among its attributes: torch's, or scipy's to make one from."""
    return _holds(model, _is_sparse)


def _holds(model: nn.Module, wanted: Callable[[Any], bool]) -> bool:
    """Whether an attribute is wanted.

    Containers are looked into two deep, at their first entries: models keep whole histories in lists.
    """
    return any(_has(value, wanted) for module in model.modules() for value in vars(module).values())


def _has(value: Any, wanted: Callable[[Any], bool], depth: int = 2) -> bool:
    if isinstance(value, dict | list | tuple):
        inside = value.values() if isinstance(value, dict) else value
        return depth > 0 and any(_has(v, wanted, depth - 1) for v in itertools.islice(inside, FIRST_ENTRIES))
    return wanted(value)


def _is_sparse(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.layout != torch.strided
    return not isinstance(value, nn.Module) and hasattr(value, "tocoo")
