"""Short runs of any model on the generated dataset: RecBole's own, and ours beside it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from recbole.utils import init_seed
from torch import Tensor

from benchmarks.baseline import recbole_trainer
from recbole_dsl import recbole_names
from recbole_dsl.config import RecBoleDSLConfig, no_flags
from recbole_dsl.experiment import build_model, load_data
from recbole_dsl.packed.layout import dense_state_dict, layout_of
from recbole_dsl.training.trainer import sparse_trainer
from tests.recbole_runs import QUIET
from tests.tiny_data import EMBEDDING, NAME

_USER = ["user_id", "age", "gender", "occupation"]
_ITEM = ["item_id", "release_year", "class", "price"]
_INTER = ["user_id", "item_id", "rating", "timestamp"]
_GRAPH = {"kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}

FAMILIES: dict[str, dict[str, Any]] = {
    "general": {"load_col": {"inter": _INTER}},
    "sequential": {"load_col": {"inter": _INTER, "user": _USER, "item": _ITEM[:3]}, "MAX_ITEM_LIST_LENGTH": 10},
    "context_aware": {
        "load_col": {"inter": _INTER, "user": _USER, "item": _ITEM},
        "threshold": {"rating": 4},
        "normalize_field": ["price"],
    },
    "knowledge_aware": {"load_col": {"inter": _INTER, **_GRAPH}},
}
"""What the models of a family are given."""

_VECTORS: dict[str, Any] = {
    "additional_feat_suffix": ["ent", "rel"],
    "load_col": {"inter": _INTER, **_GRAPH, "ent": ["ent_id", "ent_emb"], "rel": ["rel_id", "rel_emb"]},
    "alias_of_entity_id": ["ent_id"],
    "alias_of_relation_id": ["rel_id"],
    "preload_weight": {"ent_id": "ent_emb", "rel_id": "rel_emb"},
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
}
_STAGE = {"pretrain_epochs": 2, "save_step": 2}
_USER_BATCHES = {"train_batch_size": 14}  # a batch of these models is one of users
_NO_FLOATS = {"load_col": {"inter": _INTER, "user": _USER, "item": _ITEM[:3]}, "normalize_field": None}

CASES: dict[str, dict[str, Any]] = {
    "CDAE": _USER_BATCHES,
    "ConvNCF": {"embedding_size": 64},  # its layers are made for that
    "DSSM": _NO_FLOATS,  # RecBole counts them twice (dssm.py:48)
    "DiffRec": _USER_BATCHES,
    "ENMF": _USER_BATCHES,
    "GRU4RecKG": _VECTORS,
    "KSR": {**_VECTORS, "kg_embedding_size": EMBEDDING},
    "LDiffRec": _USER_BATCHES,
    "MacridVAE": _USER_BATCHES,
    "MultiDAE": _USER_BATCHES,
    "MultiVAE": _USER_BATCHES,
    "NCL": {"num_clusters": 5},
    "RaCT": {**_STAGE, **_USER_BATCHES},
    "RecVAE": _USER_BATCHES,
    "S3Rec": _STAGE,
}
"""What single models are given besides."""


def names_of_models() -> list[str]:
    """Every model that the installed RecBole has, those of external libraries included."""
    return [recbole_names.model_class_name(path) for path in recbole_names.model_files().values()]


def family_of(name: str) -> str:
    """The folder that RecBole keeps a model in."""
    return recbole_names.family(recbole_names.model_files()[name.lower()])


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    """RecBole's settings of a short run of a model; the data are in ``folder``."""
    return {
        **QUIET, "data_path": str(folder), "checkpoint_dir": str(folder / "saved"), "embedding_size": EMBEDDING,
        "train_batch_size": 128, "learning_rate": 0.01, "epochs": 1,
        **FAMILIES[family_of(name)], **CASES.get(name, {}),
    }  # fmt: skip


@dataclass
class Run:
    """A finished training: ``losses`` of every step, ``valid`` metrics, the model's first weights."""

    trainer: Any
    data: tuple[Any, Any, Any]
    first: dict[str, Tensor]
    losses: list[float] = field(default_factory=list)
    valid: dict[str, float] = field(default_factory=dict)

    def weights(self) -> dict[str, Tensor]:
        """The dense floating-point weights as they are now."""
        return dense_weights(self.trainer.model)


def dense_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of all floating-point tensors of a model's dense state dict."""
    state = dense_state_dict(model.state_dict(), layout_of(model))
    return {name: t.detach().clone() for name, t in state.items() if t.is_floating_point()}


def dense_run(name: str, settings: dict[str, Any]) -> Run:
    """RecBole's own training, with the same answer to what its default settings leave open."""
    with no_flags():
        ours = RecBoleDSLConfig(name, NAME, config_dict=settings)
    if ours["train_neg_sample_args"]["distribution"] == "none":
        settings = {**settings, "train_neg_sample_args": None}
    trainer, *data = recbole_trainer(name, NAME, settings)
    return recorded_fit(trainer, data)


def sparse_trainer_of(
    name: str | type, settings: dict[str, Any], model_seed: int | None = None, **dsl: Any
) -> tuple[Any, list[Any]]:
    """Our trainer before training and its data, with ``dsl_`` settings.

    ``model_seed``: of the random numbers that the model is built from, if not RecBole's.
    """
    with no_flags():
        config = RecBoleDSLConfig(
            name, NAME, config_dict={**settings, **{f"dsl_{key}": value for key, value in dsl.items()}}
        )
    _, *data = load_data(config)
    if model_seed is not None:
        init_seed(model_seed, True)
    model = build_model(config, data[0])
    return sparse_trainer(config["MODEL_TYPE"], *config.lineage)(config, model, data[0]), data


def sparse_run(name: str | type, settings: dict[str, Any], **dsl: Any) -> Run:
    """Our training, with ``dsl_`` settings."""
    return recorded_fit(*sparse_trainer_of(name, settings, **dsl))


def recorded_fit(trainer: Any, data: list[Any]) -> Run:
    run = Run(trainer, (data[0], data[1], data[2]), dense_weights(trainer.model))
    with ExitStack() as watched:
        for loss in ("calculate_loss", "calculate_kg_loss", "calculate_rs_loss"):
            if hasattr(trainer.model, loss):
                watched.enter_context(_recorded(type(trainer.model), loss, run.losses))
        _, valid = trainer.fit(data[0], data[1], show_progress=False)
    run.valid = dict(valid or {})
    return run


@contextmanager
def _recorded(model: type, name: str, losses: list[float]) -> Iterator[None]:
    """In the class that has it: a model with a method of its own in its place is trained another way."""
    owner = next(some for some in model.__mro__ if name in vars(some))
    plain = vars(owner)[name]

    @functools.wraps(plain)
    def loss(*args: Any, **kwargs: Any) -> Any:
        result = plain(*args, **kwargs)
        parts = result if isinstance(result, tuple) else (result,)
        losses.append(sum(float(part.detach().sum()) for part in parts))
        return result

    setattr(owner, name, loss)
    try:
        yield
    finally:
        setattr(owner, name, plain)


def difference_of_losses(one: list[float], other: list[float]) -> float:
    """The greatest relative difference of two equally long lists of losses."""
    a, b = torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(((a - b).abs() / b.abs()).max())


def difference_of_weights(ours: Run, theirs: Run) -> float:
    """How far our weights are from theirs, as a share of how far training has moved theirs."""
    mine, there = ours.weights(), theirs.weights()
    assert mine.keys() == there.keys()

    def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        return float(sum((one[k].double() - other[k].double()).pow(2).sum() for k in there)) ** 0.5

    moved = distance(there, theirs.first)
    assert moved > 0, "RecBole has trained nothing"
    return distance(mine, there) / moved
