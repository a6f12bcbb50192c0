"""Modules whose weights are packed: the same class by name and ``isinstance``, other storage.

:func:`packed_class` derives from a module's class one in which some parameters are properties that
read from a :class:`~recbole_dsl.packed.group.PackedGroup`. ``nn.Embedding`` then gathers only the
asked rows, and ``nn.Linear`` uses the fastest product.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from torch._compile import _disable_dynamo

from ..errors import PackedWriteError
from .group import PackedGroup
from .linear import linear, product_with_whole
from .readonly import read_only

# torch.compile breaks its graph at these functions: caches and the shared gradient buffer are Python
# state it cannot trace.

SLOTS = "_packed_slots"
"""Attribute of a packed module: {parameter name: (group, number of the tensor in it)}."""


def slot_of(module: nn.Module, attribute: str) -> tuple[PackedGroup, int]:
    """Group and tensor number behind a packed parameter of ``module``."""
    return module.__dict__[SLOTS][attribute]


@_disable_dynamo
def dense_weight(module: nn.Module, attribute: str) -> Tensor:
    """The whole packed parameter, dense and read-only."""
    group, tensor = slot_of(module, attribute)
    whole = group.dense(tensor)
    return read_only(
        whole, group.slices[tensor].name, functools.partial(product_with_whole, group, tensor, whole)
    )


@_disable_dynamo
def _embedding_forward(self: nn.Embedding, input: Tensor) -> Tensor:
    group, tensor = slot_of(self, "weight")
    return group.rows(tensor, input, self.padding_idx)


@_disable_dynamo
def _linear_forward(self: nn.Linear, input: Tensor) -> Tensor:
    group, tensor = slot_of(self, "weight")
    return linear(group, tensor, input, self.bias)


_FORWARDS = {nn.Embedding: _embedding_forward, nn.Linear: _linear_forward}


def base_of(module: nn.Module) -> Any:
    """The class a packed module had before, even if its own has been derived from since (parametrisations)."""
    return type(module)._packed_base  # type: ignore[attr-defined]


def _extra_repr(self: nn.Module) -> str:
    told = base_of(self).extra_repr(self)
    slots = ", ".join(f"{a} packed in {g.name!r}" for a, (g, _) in self.__dict__[SLOTS].items())
    return f"{told}, {slots}" if told else slots


def _set_attribute(self: nn.Module, name: str, value: Any) -> None:
    slots = self.__dict__.get(SLOTS, {})
    if name in slots:
        group, tensor = slots[name]
        raise PackedWriteError(
            f"assignment to packed weight {group.slices[tensor].name!r}, of which only the live "
            "values exist; allowed are assigning before packing, or unpacking it first."
        )
    base_of(self).__setattr__(self, name, value)


def _requires_grad(self: nn.Module, requires_grad: bool = True) -> nn.Module:
    """Freeze or unfreeze a whole group with its only tensor; a part of a group cannot be frozen."""
    for group, tensor in self.__dict__[SLOTS].values():
        if group.weight.requires_grad == requires_grad:
            continue
        inside = {n for m in self.modules() for g, n in m.__dict__.get(SLOTS, {}).values() if g is group}
        if len(inside) < len(group.slices):
            raise PackedWriteError(
                f"requires_grad_({requires_grad}) for packed weight {group.slices[tensor].name!r} alone, "
                f"which shares group {group.name!r} with others; allowed are the whole model, freezing "
                "before packing, and a group of its own (set dsl_groups)."
            )
        group.weight.requires_grad_(requires_grad)
    return base_of(self).requires_grad_(self, requires_grad)


def _reduce(self: nn.Module, protocol: Any) -> tuple:
    base, attributes = base_of(self), tuple(self.__dict__[SLOTS])
    inherited = getattr(self, "__getstate__", None)
    state = inherited() if inherited is not None else self.__dict__
    return _new_packed, (base, attributes), dict(state)


def _new_packed(base: type[nn.Module], attributes: tuple[str, ...]) -> nn.Module:
    cls: Any = packed_class(base, attributes)  # type: ignore[arg-type]
    return cls.__new__(cls)


@functools.cache
def packed_class(base: type[nn.Module], attributes: tuple[str, ...]) -> type[nn.Module]:
    """A subclass of ``base``, of the same name, whose ``attributes`` are packed.

    ``copy.deepcopy`` and pickling work as for ``base``; writes to the attributes are refused. A
    ``forward`` that ``base`` defines itself is left alone and reads the weights as properties.
    """
    members: dict[str, Any] = {
        name: property(functools.partial(dense_weight, attribute=name)) for name in attributes
    }
    members.update(
        _packed_base=base,
        __module__=base.__module__,
        __qualname__=base.__qualname__,
        __doc__=base.__doc__,
        __setattr__=_set_attribute,
        __reduce_ex__=_reduce,
        requires_grad_=_requires_grad,
        extra_repr=_extra_repr,
    )
    for kind, forward in _FORWARDS.items():
        if (
            issubclass(base, kind)
            and getattr(base, "forward", None) is getattr(kind, "forward", None)
            and "weight" in attributes
        ):
            members["forward"] = forward
    return type(base.__name__, (base,), members)
