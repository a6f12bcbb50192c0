"""Which entries of a state dict belong to sparse groups, and the dense state dict they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError
from .group import PackedGroup
from .index import is_index, row_numbers, slices_of
from .layers import SLOTS
from .masked import MaskedGroup

Layout = list[dict[str, Any]]
"""A row per sparse group: ``prefix`` of its entries, ``storage`` and, of a packed one, ``tensors``, each
with its ``shape`` and all the ``names`` it has in the dense model. Plain values only."""


def layout_of(root: nn.Module) -> Layout:
    """The layout of ``root.state_dict()``."""
    names = names_of_tensors(root)
    layout: Layout = []
    for prefix, module in root.named_modules(remove_duplicate=False):  # a shared module has all its names
        if isinstance(module, PackedGroup):
            tensors = [
                {"names": names.get((id(module), t), []), "shape": list(s.shape)}
                for t, s in enumerate(module.slices)
            ]
            layout.append({"prefix": prefix, "storage": module.storage, "tensors": tensors})
        elif isinstance(module, MaskedGroup):
            layout.append({"prefix": prefix, "storage": module.storage})
    return layout


def names_of_tensors(root: nn.Module) -> dict[tuple[int, int], list[str]]:
    """All names of each sparse tensor, by the id of its group and its number there."""
    masked = {
        (id(module), attribute): (group, tensor)
        for group in root.modules()
        if isinstance(group, MaskedGroup)
        for tensor, (module, attribute) in enumerate(group.places)
    }
    names: dict[tuple[int, int], list[str]] = {}
    for prefix, module in root.named_modules(remove_duplicate=False):
        held = dict(module.__dict__.get(SLOTS, {}))
        held |= {a: masked[id(module), a] for a in module._parameters if (id(module), a) in masked}
        for attribute, (group, tensor) in held.items():
            name = f"{prefix}.{attribute}" if prefix else attribute
            names.setdefault((id(group), tensor), []).append(name)
    return names


def dense_state_dict(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The state dict of the dense model: dead weights zero, no index, no masks.

    Args:
        state: of a sparse model. layout: what :func:`layout_of` said of that model.

    Raises:
        ConfigError: the layout does not fit the state.
    """
    dense = dict(state)
    for row in layout:
        for key in [key for key in dense if key.startswith(f"{row['prefix']}.")]:
            del dense[key]
        if row["storage"] == "packed":
            parts = [state.get(f"{row['prefix']}.{part}") for part in ("weight", "row_pointers", "column_ids")]
            dense.update(_dense_tensors(row["tensors"], *parts))
    return dense


def _dense_tensors(
    tensors: Sequence[Mapping[str, Any]], values: Tensor | None, pointers: Tensor | None, columns: Tensor | None
) -> dict[str, Tensor]:
    names = [", ".join(tensor["names"]) for tensor in tensors]
    slices = slices_of(names, [tensor["shape"] for tensor in tensors])
    if (
        values is None or pointers is None or columns is None
        or values.shape != columns.shape
        or pointers.numel() != 1 + sum(s.rows for s in slices)
        or not is_index(pointers, columns, slices)
    ):  # fmt: skip
        raise ConfigError(
            f"the checkpoint's sparse tensors {'; '.join(names)} do not fit its index; allowed is a "
            "checkpoint as it was written."
        )
    result: dict[str, Tensor] = {}
    for tensor, s in zip(tensors, slices, strict=True):
        here = slice(int(pointers[s.first_row]), int(pointers[s.first_row + s.rows]))
        rows = row_numbers(pointers, s.first_row, s.first_row + s.rows)
        dense = values.new_zeros(s.rows * s.cols)
        dense[rows * s.cols + columns[here].long()] = values[here]
        result.update(dict.fromkeys(tensor["names"], dense.view(s.shape)))
    return result
