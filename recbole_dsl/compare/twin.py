"""The sparse model that a dense one is compared with, before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..config import RecBoleDSLConfig
from ..costs import held_bytes, optimizers_of, trained_weights, undisturbed
from ..experiment import build_model, load_data
from ..training.trainer import sparse_trainer


@dataclass(frozen=True)
class Budget:
    """What tensors share: their names in order, how many weights live in the end, and the bytes of those and
    their index."""

    names: tuple[str, ...]
    live: int
    bytes: int = 0


@dataclass(frozen=True)
class Twin:
    """What is known of a sparse model.

    ``budgets``: of its groups; ``held``: bytes by :func:`~recbole_dsl.costs.held_bytes`; ``value_bytes``: of a
    weight; ``initial``: state dict of the dense model that it was made of; ``weights``: how many that trains;
    ``train_data``: RecBole's loader.
    """

    budgets: Sequence[Budget]
    held: Mapping[str, int]
    value_bytes: int
    initial: Mapping[str, Tensor]
    weights: int
    train_data: Any


def sparse_twin(config: RecBoleDSLConfig) -> Twin:
    """Build the sparse model of a configuration, and forget it again."""
    _, train_data, _, _ = load_data(config)
    network = build_model(config, train_data)
    initial = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    weights = trained_weights(network)
    with undisturbed():
        trainer = sparse_trainer(config["MODEL_TYPE"], *config.lineage)(config, network, train_data)
    budgets = [
        Budget(
            tuple(s.name for s in group.slices),
            group.budget,
            group.budget * group.dtype.itemsize + group.index_bytes,
        )
        for group in trainer.sparse.groups
    ]
    value_bytes = next(trainer.model.parameters()).element_size()
    held = held_bytes(trainer.model, *optimizers_of(trainer))
    return Twin(budgets, held, value_bytes, initial, weights, train_data)
