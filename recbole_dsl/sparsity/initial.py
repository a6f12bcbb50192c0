"""Initial values of live weights of tensors that have none: those on torch's ``meta`` device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from ..errors import ConfigError, TargetError
from .targets import TensorInfo

VALUES_PER_BLOCK: Final = 2**20
"""Values drawn together."""

InitialValues = Callable[[TensorInfo, Tensor, torch.Generator], Tensor]
"""Maps a tensor, flat positions in it (1-D int64, ascending) and a CPU generator to the values there.

Asked block by block, at most :data:`VALUES_PER_BLOCK` positions each; the values are 1-D as well.
"""


def usual_values(tensor: TensorInfo, positions: Tensor, generator: torch.Generator) -> Tensor:
    """torch's own distributions: standard normal for ``nn.Embedding``, uniform for ``nn.Linear``.

    The padding row of an embedding is zero; a Linear's bound is 1 / √(inputs).

    Raises:
        TargetError: the tensor belongs to another module, whose distribution nobody has said.
    """
    module, dtype = tensor.places[0][0], tensor.parameter.dtype
    if isinstance(module, nn.Embedding):
        values = torch.randn(positions.numel(), generator=generator, dtype=dtype)
        if module.padding_idx is not None:
            values[positions // module.embedding_dim == module.padding_idx] = 0.0
        return values
    if isinstance(module, nn.Linear):
        bound = 1.0 / math.sqrt(module.in_features)
        return torch.rand(positions.numel(), generator=generator, dtype=dtype).mul_(2 * bound).sub_(bound)
    raise TargetError(
        f"{tensor.name} ({tensor.kind}) is on the meta device and has no usual distribution of initial "
        "values; allowed with it is an initial_values of your own."
    )


def by_tensor(tensors: Sequence[TensorInfo], live: Tensor) -> Iterator[tuple[TensorInfo, slice, int]]:
    """Each tensor, the part of ``live`` (flat positions, ascending) that is in it, and its first position."""
    low = start = 0
    for tensor in tensors:
        end = start + tensor.parameter.numel()
        high = int(torch.searchsorted(live, end))
        yield tensor, slice(low, high), start
        low, start = high, end


def fan_in_scale(tensors: Sequence[TensorInfo], live: Tensor, but: Sequence[bool] = ()) -> Tensor:
    """√(inputs / live inputs) of an output of ``nn.Linear``, by live weight; 1 in other tensors.

    With values larger by that, an output varies as much as with all its inputs; without it what passes
    through several sparse layers fades (Evci et al., Gradient Flow in Sparse Neural Networks, AAAI 2022).

    Args:
        live: flat positions, int64, ascending, over the tensors in order.
        but: per tensor, whether it is left as it is (empty: none).
    """
    result = torch.ones(live.numel(), dtype=tensors[0].parameter.dtype)
    spared = but or [False] * len(tensors)
    for (tensor, part, start), left in zip(by_tensor(tensors, live), spared, strict=True):
        if tensor.kind == "linear" and not left:
            outputs, inputs = tensor.shape
            rows = (live[part] - start) // inputs
            counts = torch.bincount(rows, minlength=outputs)
            result[part] = (inputs / counts.index_select(0, rows)).sqrt()
    return result


def draw_values(
    tensors: Sequence[TensorInfo], live: Tensor, values_of: InitialValues, generator: torch.Generator
) -> Tensor:
    """The initial values at flat positions ``live`` (int64, ascending) over the tensors in order.

    Raises:
        ConfigError: ``values_of`` gives something else than a number for each position.
    """
    result = torch.empty(live.numel(), dtype=tensors[0].parameter.dtype)
    for tensor, part, start in by_tensor(tensors, live):
        for first in range(part.start, part.stop, VALUES_PER_BLOCK):
            block = slice(first, min(first + VALUES_PER_BLOCK, part.stop))
            values = values_of(tensor, live[block] - start, generator)
            wanted = (block.stop - block.start,)
            if not isinstance(values, Tensor) or values.shape != wanted:
                given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise ConfigError(
                    f"initial_values gave {given} for {tensor.name}: allowed is a tensor of shape {wanted}."
                )
            result[block] = values.detach()
    return result
