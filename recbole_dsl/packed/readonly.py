"""The dense view of a packed weight that a model reads: a tensor no write can be lost in.

``module.weight`` of a packed module is a copy made on demand, so a write into it would change
nothing. A plain tensor cannot tell; this subclass refuses the write and names the weight. Results
that share its memory (``.data``, ``.detach()``, slices, transposes) are read-only too; results with
memory of their own are plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from ..errors import PackedWriteError

PRODUCTS: Final = frozenset({torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__})

Product = Callable[[Tensor, Tensor], Tensor | None]
"""Maps vectors and a view of the weight to their product; None if it is left to torch."""


class ReadOnlyWeight(torch.Tensor):
    """A dense, differentiable, read-only view of one packed weight."""

    _packed_name: str
    _packed_product: Product | None

    @classmethod
    @_disable_dynamo
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in PRODUCTS and len(args) == 2 and not kwargs:
            product = _by_live_weights(*args)
            if product is not None:
                return product
        sources = list(_read_only(args)) + list(_read_only(kwargs.values()))
        if _sets_requires_grad(func):
            _refuse_freezing(args[0], kwargs.get("requires_grad", args[1] if len(args) > 1 else True))
            return args[0]
        _refuse_named_write(func, args, kwargs)
        before = [_version(t) for t in sources]
        with torch._C.DisableTorchFunctionSubclass():
            try:
                result = func(*args, **kwargs)
            finally:
                # What the name does not give away (F.embedding with max_norm) the counter does.
                for source, version in zip(sources, before, strict=True):
                    if _version(source) != version:
                        raise _refusal(source, getattr(func, "__name__", str(func)))
            return _protect(result, sources, func)

    def set_(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refused like every write; torch does not hand this one to ``__torch_function__``."""
        raise _refusal(self, "set_")

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        """Of a copy: other libraries know no read-only memory."""
        return _plain(self).clone().__dlpack__(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A plain dense tensor of its own, as free as the copy of a parameter."""
        return _plain(self).clone().requires_grad_(self.requires_grad)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as a plain dense tensor, so that it loads without this package."""
        return _plain(self).__reduce_ex__(protocol)


def read_only(tensor: Tensor, name: str, product: Product | None = None) -> Tensor:
    """A :class:`ReadOnlyWeight` over the same memory and graph node, named for error messages.

    ``product``: asked where vectors are multiplied by it, or by a view of it, without a gradient.
    """
    view = tensor.as_subclass(ReadOnlyWeight)
    view._packed_name, view._packed_product = name, product
    return view


def _by_live_weights(vectors: Any, weight: Any) -> Tensor | None:
    if torch.is_grad_enabled() or not isinstance(weight, ReadOnlyWeight) or type(vectors) is not Tensor:
        return None
    with torch._C.DisableTorchFunctionSubclass():
        return None if weight._packed_product is None else weight._packed_product(vectors, weight)


def _read_only(values: Any) -> Iterator[ReadOnlyWeight]:
    for value in values:
        if isinstance(value, ReadOnlyWeight):
            yield value
        elif isinstance(value, list | tuple):
            yield from _read_only(value)


def _plain(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach()


def _version(tensor: Tensor) -> int:
    with torch._C.DisableTorchFunctionSubclass():
        return 0 if tensor.is_inference() else tensor._version


def _refuse_named_write(func: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    name = getattr(func, "__name__", "")
    target: Any = kwargs.get("out")
    if name == "__set__" or name == "__setitem__" or _is_in_place(name):
        target = args[0] if args else kwargs.get("input", kwargs.get("tensor"))
    elif kwargs.get("inplace"):
        target = args[0] if args else kwargs.get("input")
    if name == "__set__" and _property_of(func) == "grad" and len(args) > 1 and args[1] is None:
        target = None
    for written in _read_only([target]):
        raise _refusal(written, name)


def _sets_requires_grad(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name == "requires_grad_" or (name == "__set__" and _property_of(func) == "requires_grad")


def _refuse_freezing(view: ReadOnlyWeight, wanted: bool) -> None:
    """Raise PackedWriteError unless nothing changes: a view knows nothing of the group's parameter."""
    with torch._C.DisableTorchFunctionSubclass():
        if torch.is_grad_enabled() and view.requires_grad == wanted:
            return
    raise PackedWriteError(
        f"requires_grad={wanted} for packed weight {view._packed_name!r} would change a copy only; allowed is "
        f"requires_grad_({wanted}) of its module."
    )


def _is_in_place(name: str) -> bool:
    if name.startswith("__"):
        return name.startswith("__i") and name not in (
            "__invert__",
            "__int__",
            "__index__",
            "__iter__",
        )
    return name.endswith("_") and name not in ("requires_grad_", "retain_grad_")


def _property_of(func: Any) -> str:
    return getattr(getattr(func, "__self__", None), "__name__", "")


def _refusal(tensor: Any, operation: str) -> PackedWriteError:
    with torch._C.DisableTorchFunctionSubclass():
        name = getattr(tensor, "_packed_name", "a packed weight")
    return PackedWriteError(
        f"in-place write ({operation}) into packed weight {name!r}, of which only the live values "
        "exist; allowed are reading it, writing before packing, or unpacking it first."
    )


def _protect(result: Any, sources: list[ReadOnlyWeight], func: Any) -> Any:
    if not sources:
        return result
    # Methods that return self keep its identity; torch.compile walks from view to base, which ends.
    if any(result is source for source in sources) or _property_of(func) == "_base":
        return result
    if isinstance(result, torch.Tensor):
        source = next((s for s in sources if lies_in(result, s)), None)
        if source is None:
            return result.as_subclass(torch.Tensor) if type(result) is ReadOnlyWeight else result
        return read_only(result, source._packed_name, source._packed_product)
    if isinstance(result, list | tuple):
        kept = [_protect(r, sources, func) for r in result]
        if type(result) in (list, tuple):
            return type(result)(kept)
        return type(result)(kept) if not hasattr(result, "_fields") else type(result)(*kept)
    if getattr(func, "__name__", "") in ("numpy", "__array__") and hasattr(result, "flags"):
        result.flags.writeable = False
    return result


def lies_in(a: Tensor, b: Tensor) -> bool:
    """Whether ``a`` begins in the memory of ``b``, which is contiguous."""
    if a.layout != torch.strided or a.numel() == 0:
        return False
    if a.untyped_storage()._cdata != b.untyped_storage()._cdata:
        return False
    # Weights that were read together are parts of one storage.
    return b.data_ptr() <= a.data_ptr() < b.data_ptr() + b.nbytes
