"""The mean over a graph model's layers, without the stack of all of them.

``torch.stack(layers, dim=1).mean(dim=1)`` writes all layers once more to read them again, and its backward
pass writes as many gradients, which are all the same. :class:`Layers` stands for the stack and takes the mean
from the layers themselves; whatever else is asked of it, it becomes the stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

MEANS = frozenset({torch.mean, Tensor.mean})


class Layers(Tensor):
    """``torch.stack(parts, dim=1)`` of at least two n × d tensors, not stacked yet.

    It has no memory of its own: what bypasses torch's functions, such as ``autograd.Function.apply``, fails.
    """

    parts: tuple[Tensor, ...]
    versions: tuple[int, ...]
    whole: Tensor | None

    @staticmethod
    def of(parts: Sequence[Tensor]) -> Layers:
        """Of tensors of one shape, type and device (see :func:`stackable`)."""
        first = parts[0]
        shape = (first.shape[0], len(parts), first.shape[1])
        layers: Any = Tensor._make_wrapper_subclass(Layers, shape, dtype=first.dtype, device=first.device)
        layers.parts = tuple(p.as_subclass(Tensor) for p in parts)
        layers.versions = tuple(p._version for p in layers.parts)
        layers.whole = None
        return layers

    def unchanged_parts(self) -> tuple[Tensor, ...]:
        """The layers, which a stack would have copied: so it is an error if one was written to."""
        if self.versions != tuple(p._version for p in self.parts):
            raise RuntimeError("a layer was written to after it was stacked; set dsl_graph=recbole")
        return self.parts

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        is_mean = func in MEANS and _over_layers(*args[1:], **kwargs)
        if is_mean and isinstance(first, Layers) and first.whole is None:
            return _Mean.apply(*first.unchanged_parts())
        args, kwargs = tree_map(_stacked, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(
            f"{func} has been given a stack of layers past torch's functions; set dsl_graph=recbole"
        )


def stackable(parts: Any) -> bool:
    """Whether these are two or more n × d tensors of one shape, type and device."""
    if not isinstance(parts, list | tuple) or len(parts) < 2:
        return False
    if not all(isinstance(p, Tensor) and p.layout == torch.strided and p.dim() == 2 for p in parts):
        return False
    return (
        len({(p.shape, p.dtype, p.device) for p in parts}) == 1
        and parts[0].is_floating_point()
        and not any(p.is_inference() for p in parts)
    )


def _over_layers(dim: Any = None, keepdim: bool = False, **others: Any) -> bool:
    return dim in (1, -2) and isinstance(dim, int) and not keepdim and not others


def _stacked(value: Any) -> Any:
    """The stack itself, made once, where ``value`` stands for one."""
    if not isinstance(value, Layers):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        if value.whole is None:
            value.whole = torch.stack(value.unchanged_parts(), dim=1)
        return value.whole


class _Mean(torch.autograd.Function):
    """The layers' sum in their order divided by their number, as ``torch.mean`` has it."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.count = len(parts)
        total = parts[0] + parts[1]
        for part in parts[2:]:
            total += part
        return total.div_(len(parts))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return (grad / ctx.count,) * ctx.count
