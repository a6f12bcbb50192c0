"""States of all random generators that a training draws from, as tensors and plain values."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def generators_of(loader: Any) -> list[torch.Generator]:
    """The generators of a RecBole loader: its own, or those of the two that a knowledge-based one has."""
    parts = [getattr(loader, name, None) for name in ("general_dataloader", "kg_dataloader")]
    found = [getattr(part, "generator", None) for part in (loader, *parts)]
    return [g for g in found if isinstance(g, torch.Generator)]


def states(generators: Iterable[torch.Generator]) -> dict[str, Any]:
    """States of Python's, numpy's and torch's global generators (CPU and CUDA) and of ``generators``."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {
        "python": [version, _packed(numbers), gauss],
        "numpy": [name, _packed(keys), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "loaders": [g.get_state() for g in generators],
    }


def restore(state: dict[str, Any], generators: Iterable[torch.Generator]) -> None:
    """Set the generators to the states that :func:`states` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(_unpacked(numbers).tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, _unpacked(keys).astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    for generator, kept in zip(generators, state["loaders"], strict=True):
        generator.set_state(kept.cpu())


def _packed(numbers: Any) -> Tensor:
    """Numbers below 2^32 as int32, which takes half the room."""
    return torch.from_numpy(np.asarray(numbers, dtype=np.uint32).view(np.int32).copy())


def _unpacked(numbers: Tensor) -> Any:
    return numbers.cpu().numpy().view(np.uint32).astype(np.int64)
