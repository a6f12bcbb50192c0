"""Put sparse groups into a model, and take them out again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TargetError
from ..sparsity.initial import VALUES_PER_BLOCK, by_tensor
from ..sparsity.targets import TensorInfo
from .group import PackedGroup
from .layers import SLOTS, base_of, packed_class
from .masked import MaskedGroup

# Their children are looped over or called in order, so a group among them would be taken for a layer.
CONTAINERS = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.ParameterList,
    nn.ParameterDict,
)


def pack(
    root: nn.Module,
    name: str,
    tensors: Sequence[TensorInfo],
    live: Tensor,
    values: Tensor | None = None,
) -> PackedGroup:
    """Store ``tensors`` of ``root`` as one packed group and free their dense parameters.

    Args:
        name: name of the group; it is registered as ``packed_<name>`` in the innermost module that
            holds all the tensors, which fixes the names in ``state_dict``.
        live: flat positions over the tensors in order, int64, ascending.
        values: values of the live weights; None takes those the tensors have now. Tensors on the meta
            device have none, so they need them; the group is where the values are.

    Raises:
        TargetError: a tensor cannot be packed, the tensors differ in type or device, or the name is taken.
    """
    for tensor in tensors:
        if not tensor.packable:
            raise TargetError(
                f"{tensor.name} ({tensor.kind}) cannot be packed; allowed is dsl_storage='masked'."
            )
    check_uniform(name, tensors)
    home, child = _place(root, name, tensors, "packed")
    if values is None:
        values = values_at(tensors, live)
    group = PackedGroup(name, [t.name for t in tensors], [t.shape for t in tensors], live, values)
    if not tensors[0].parameter.is_meta:
        group.to(tensors[0].parameter.device)
    group.train(root.training)
    others = [module for module in root.modules() if isinstance(module, PackedGroup)]
    nn.Module.add_module(home, child, group)
    for number, tensor in enumerate(tensors):
        for module, attribute in tensor.places:
            _replace(module, attribute, group, number)
    keep_out_of_broadcast(root, group)
    group.peers = others[0].peers if others else []
    group.peers.append(group)
    return group


def mask(root: nn.Module, name: str, tensors: Sequence[TensorInfo], live: Tensor) -> MaskedGroup:
    """Keep ``tensors`` dense under one mask; the fallback of :func:`pack`."""
    check_uniform(name, tensors)
    home, child = _place(root, name, tensors, "masked")
    group = MaskedGroup(name, tensors, live.to(tensors[0].parameter.device))
    group.train(root.training)
    nn.Module.add_module(home, child, group)
    return group


@torch.no_grad()
def unpack(root: nn.Module, groups: Sequence[PackedGroup | MaskedGroup]) -> None:
    """Restore the dense model: same classes, same parameter order, dead weights zero.

    Tied weights are tied again. Parameters of packed groups are new objects, so an optimizer has to be rebuilt.
    """
    for group in groups:
        if isinstance(group, PackedGroup):
            dense = [
                nn.Parameter(group.dense(t).detach().clone(), group.weight.requires_grad)
                for t in range(len(group.slices))
            ]
            for module in list(root.modules()):
                for attribute, (owner, number) in list(module.__dict__.get(SLOTS, {}).items()):
                    if owner is group:
                        _restore(module, attribute, dense[number])
            if group in group.peers:
                group.peers.remove(group)
        else:
            group.release()
        for module in root.modules():
            for child, candidate in list(module._modules.items()):
                if candidate is group:
                    del module._modules[child]
    _forget_missing_buffers(root)


def values_at(tensors: Sequence[TensorInfo], live: Tensor) -> Tensor:
    """The current values of the tensors at ascending flat positions ``live``, without a joint dense copy."""
    first = tensors[0].parameter
    result = torch.empty(live.numel(), dtype=first.dtype, device=first.device)
    for tensor, part, start in by_tensor(tensors, live):
        flat = tensor.parameter.detach().reshape(-1)
        for block in range(part.start, part.stop, VALUES_PER_BLOCK):
            end = min(block + VALUES_PER_BLOCK, part.stop)
            result[block:end] = flat[(live[block:end] - start).to(flat.device)]
    return result


def check_uniform(name: str, tensors: Sequence[TensorInfo]) -> None:
    """Raise TargetError unless all tensors of a group have one dtype and device."""
    kinds = {(t.parameter.dtype, t.parameter.device) for t in tensors}
    if len(kinds) > 1:
        told = ", ".join(f"{t.name}: {t.parameter.dtype} on {t.parameter.device}" for t in tensors)
        raise TargetError(
            f"sparse group {name!r} mixes types or devices ({told}); "
            "allowed is one of each per group (set dsl_groups)."
        )


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


def check_names(root: nn.Module, groups: Sequence[tuple[str, Sequence[TensorInfo], str]]) -> None:
    """Raise TargetError unless groups (name, tensors, storage) can be registered, all of them."""
    taken: list[tuple[nn.Module, str]] = []
    for name, tensors, storage in groups:
        taken.append(_place(root, name, tensors, storage, taken))


def _place(
    root: nn.Module,
    name: str,
    tensors: Sequence[TensorInfo],
    storage: str,
    taken: Sequence[tuple[nn.Module, str]] = (),
) -> tuple[nn.Module, str]:
    """The module that a group becomes a child of, and its name there, which must be free."""
    home = _innermost(root, [module for t in tensors for module, _ in t.places])
    child = f"{storage}_{_identifier(name)}"
    if (home, child) in taken or hasattr(home, child):
        raise TargetError(
            f"sparse group {name!r} would be {child!r} in {type(home).__name__}, which another has there; "
            "allowed is a group name that is not taken (set dsl_groups)."
        )
    return home, child


def _innermost(root: nn.Module, wanted: Sequence[nn.Module]) -> nn.Module:
    """The deepest non-container module of ``root`` whose subtree holds all ``wanted`` modules.

    If there is none, because ``root`` is a container itself, the first wanted module that is none.
    """
    ids = {id(m) for m in wanted}
    best = next((m for m in (root, *wanted) if not isinstance(m, CONTAINERS)), root)
    for module in root.modules():
        if isinstance(module, CONTAINERS):
            continue
        if ids <= {id(m) for m in module.modules()}:
            best = module  # modules() walks downwards, so a later match lies deeper
    return best


def _replace(module: nn.Module, attribute: str, group: PackedGroup, number: int) -> None:
    slots = dict(module.__dict__.get(SLOTS, {}))
    base: Any = base_of(module) if slots else type(module)
    order = module.__dict__.get("_dense_order") or tuple(module._parameters)
    slots[attribute] = (group, number)
    del module._parameters[attribute]
    module.__dict__[SLOTS] = slots
    module.__dict__["_dense_order"] = order
    module.__class__ = packed_class(base, tuple(slots))


def _restore(module: nn.Module, attribute: str, parameter: nn.Parameter) -> None:
    slots = module.__dict__[SLOTS]
    del slots[attribute]
    base = base_of(module)
    module.__class__ = packed_class(base, tuple(slots)) if slots else base
    parameters = {**module._parameters, attribute: parameter}
    order = module.__dict__["_dense_order"]
    module._parameters.clear()
    for key in sorted(parameters, key=lambda k: order.index(k) if k in order else len(order)):
        module._parameters[key] = parameters[key]
    if not slots:
        del module.__dict__[SLOTS], module.__dict__["_dense_order"]


def keep_out_of_broadcast(root: nn.Module, group: PackedGroup) -> None:
    """DistributedDataParallel broadcasts buffers at every forward; the index changes on all ranks
    alike, so it need not travel."""
    names = [name for name, b in root.named_buffers() if b is group.row_pointers or b is group.column_ids]
    ignored = list(getattr(root, "_ddp_params_and_buffers_to_ignore", []))
    root._ddp_params_and_buffers_to_ignore = ignored + names  # type: ignore[assignment]


def _forget_missing_buffers(root: nn.Module) -> None:
    if not hasattr(root, "_ddp_params_and_buffers_to_ignore"):
        return
    present = dict(root.named_buffers())
    left = [n for n in root._ddp_params_and_buffers_to_ignore if n in present]  # type: ignore[union-attr]
    if left:
        root._ddp_params_and_buffers_to_ignore = left  # type: ignore[assignment]
    else:
        del root._ddp_params_and_buffers_to_ignore
