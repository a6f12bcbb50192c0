"""From a checkpoint to an artifact that is served: :func:`export_artifact`."""

from __future__ import annotations

import math
import os
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import init_seed
from torch import Tensor, nn

from . import __version__
from .errors import ArtifactError, ConfigError, nearest
from .experiment import read_dataset
from .loading import LEFT_OUT, load
from .packed.group import PackedGroup
from .packed.layers import SLOTS
from .packed.layout import layout_of
from .plain import finite, plain
from .results import PRIVATE_SETTINGS
from .serving import models
from .serving.artifact import (
    Arrays,
    Artifact,
    Manifest,
    packed_tensors,
    refuse_occupied,
    unpacked_tensors,
    write_artifact,
)
from .serving.encoders import Graph
from .serving.quantise import VALUES
from .serving.recommender import SparseRecommender
from .serving.scorers import VectorScorer
from .serving.table import SparseTable, pointers_of, smallest_unsigned, sparse_bytes
from .serving.tokens import Tokens
from .training.evaluation import Evaluation

TOLERANCE: Final = 1e-4
"""How far scores of an artifact with ``fp32`` values may be from the model's, as a share of their largest."""

_PLACES: Final = 8
"""Decimals of metrics; RecBole's default of 4 would hide what quantisation changes."""

_CHECKED_USERS: Final = 32


def export_artifact(
    checkpoint: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    values: str = "fp32",
    with_history: bool = False,
    metrics: bool = True,
    replace: bool = False,
    model_class: type | None = None,
    **settings: Any,
) -> Manifest:
    """Write a checkpoint as an artifact that :class:`~recbole_dsl.serving.recommender.SparseRecommender` loads.

    The dataset has to be there: names of users and items, the interactions and the test data come from it.

    Args:
        checkpoint: a best or a last one.
        folder: of the artifact; must not exist yet.
        values: of the weights, ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"int8"`` (with a scale per row).
        with_history: store what each user has in the data, so that it can be left out of recommendations, and
            is the sequence that a sequential model goes on from.
        metrics: evaluate model and artifact on the test data, and put both results into the manifest.
        replace: an artifact in ``folder`` may be replaced.
        model_class, settings: as in :func:`~recbole_dsl.loading.load_data_and_model`.

    Returns:
        The manifest that was written.

    Raises:
        ArtifactError: the model is not served, ``folder`` is occupied or cannot be written, or the artifact's
            scores are not the model's.
        CheckpointError, ConfigError, DataError: as in ``load_data_and_model``.
    """
    if values not in VALUES:
        hint = nearest(values, VALUES)
        raise ConfigError(f"values={values!r} is refused: allowed is one of {', '.join(VALUES)}{hint}.")
    refuse_occupied(Path(folder), replace)
    # Where artifacts are asked; another device's scores would differ by rounding.
    config, model, dataset, train_data, _, test_data = load(checkpoint, model_class, settings, device="cpu")
    model.eval()
    measured: dict[str, Any] = {}
    with torch.no_grad():
        draft = _Draft(config, model, dataset, train_data, with_history)
        arrays, artifact = draft.written_as("fp32", Path(folder))
        scorer = SparseRecommender.of(artifact).scorer
        _refuse_other_scores(scorer, config, model, draft.users)
        if values != "fp32":
            arrays, artifact = draft.written_as(values, Path(folder))
        if metrics:
            scorer = scorer if values == "fp32" else SparseRecommender.of(artifact).scorer
            measured = _metrics(config, model, scorer, train_data, test_data)
    manifest = replaced(artifact.manifest, metrics=measured)
    return write_artifact(folder, manifest, arrays, draft.catalogue, draft.interactions, replace)


class _Draft:
    """An artifact that is being made: the parts that do not depend on how values are written."""

    def __init__(self, config: Any, model: Any, dataset: Any, train_data: Any, with_history: bool) -> None:
        self.config, self.users, self.items = config, dataset.user_num, dataset.item_num
        name = next(
            (name for name in config.lineage if name in models.VECTORS or name in models.BY_RECBOLE), None
        )
        if name is None or (name != config.lineage[0] and name in models.BY_RECBOLE):
            raise ArtifactError(_not_served(config.lineage))
        graphs: dict[str, Graph] = {}
        trained = _graph_of(train_data._dataset)
        if name in models.VECTORS:
            source = models.VECTORS[name](model)
            self.form, self.encoder = "vectors", source.encoder
            tensors = {key: _tensor(part) for key, part in source.tensors.items()}
            self.options = {**source.options, "activation": source.activation}
            graphs |= source.graphs
        else:
            needs = models.BY_RECBOLE[name]
            if needs == "sequences" and not with_history:
                raise ArtifactError(
                    f"{name} goes on from the sequences of its users; allowed is an export --with-history."
                )
            self.form, self.encoder, self.options = "recbole", name, {}
            tensors = _all_tensors(model)
            if needs == "interactions":
                graphs["graph"] = trained
        if with_history:
            graphs["history"] = _without(_history_of(dataset, config), graphs.get("graph"))
        # Masked tensors are dense ones with zeros.
        self.tensors = {key: _without_zeros(tensor) for key, tensor in tensors.items()}
        self.history = with_history
        self.interactions: Arrays = {}
        for key, graph in graphs.items():
            counts = graph.counts
            self.interactions[f"{key}#counts"] = counts.astype(smallest_unsigned(counts.max(initial=0)))
            self.interactions[f"{key}#items"] = graph.items.astype(smallest_unsigned(graph.size - 1))
        popularity = np.bincount(trained.items, minlength=trained.size)
        self.catalogue: Arrays = {
            **Tokens.arrays_of(list(map(str, dataset.field2id_token[dataset.uid_field][1:])), "users"),
            **Tokens.arrays_of(list(map(str, dataset.field2id_token[dataset.iid_field][1:])), "items"),
            "popularity": popularity.astype(smallest_unsigned(popularity.max(initial=0))),
        }

    def written_as(self, values: str, folder: Path) -> tuple[Arrays, Artifact]:
        """The arrays of the weights' file, and the artifact as it will be read from it, without metrics."""
        arrays, described = packed_tensors(self.tensors, values)
        tables = [t for t in self.tensors.values() if isinstance(t, SparseTable)]
        weights = sum(math.prod(t.shape) for t in tables)
        live = sum(len(t.values) for t in tables)
        dense = sum(math.prod(t.shape) for t in self.tensors.values())
        manifest = Manifest(
            model=self.config["model"],
            dataset=self.config["dataset"],
            form=self.form,
            encoder=self.encoder,
            options=self.options,
            values=values,
            users=self.users,
            items=self.items,
            density=live / weights if weights else 1.0,
            history=self.history,
            tensors=described,
            sizes={
                "weights": dense,
                "live": live,
                "sparse_weights": weights,
                "dense_fp32": 4 * dense,
                "tensors": sum(a.nbytes for a in arrays.values()),
            },
            metrics={},
            config=_settings(self.config),
            created={"recbole_dsl": __version__, "torch": torch.__version__},
        )
        tensors = unpacked_tensors(manifest, arrays, folder)
        return arrays, Artifact(manifest, tensors, self.catalogue, self.interactions, folder)


def _refuse_other_scores(scorer: Any, config: Any, model: Any, count: int) -> None:
    """Raise ArtifactError if an artifact's scores are not those of the model, for some of ``count`` users."""
    users = np.arange(1, count)[:: max(1, count // _CHECKED_USERS)]
    ours = scorer.matrix(users)
    if isinstance(scorer, VectorScorer):
        theirs = _full_scores(model, config, users)
    else:
        theirs = _scores_of_copy(scorer, model, users)
    scale = float(np.abs(theirs[:, 1:]).max())
    difference = float(np.abs(ours - theirs)[:, 1:].max())
    if not difference <= TOLERANCE * max(scale, 1e-30):
        raise ArtifactError(
            f"The artifact's scores differ from those of {config['model']} by {difference:.3g} of "
            f"{scale:.3g}, so it is not written: allowed are models that score as RecBole's own."
        )


def _scores_of_copy(scorer: Any, model: Any, users: np.ndarray) -> np.ndarray:
    """Scores of the trained model, asked the very questions that the artifact's model is asked."""
    own = scorer.model
    scorer.model = model
    try:
        scores: np.ndarray = scorer.matrix(users)
        return scores
    finally:
        scorer.model = own


def _full_scores(model: Any, config: Any, users: np.ndarray) -> np.ndarray:
    """Scores of all items by the trained model, one user after the other."""
    rows = []
    for user in torch.from_numpy(users):
        asked = Interaction({config["USER_ID_FIELD"]: user[None]}).to(config["device"])
        rows.append(_array(model.full_sort_predict(asked).view(-1)))
    return np.stack(rows)


class ServedModel:
    """An artifact in the place of a model in RecBole's evaluation."""

    def __init__(self, scorer: Any, config: Any) -> None:
        self.scorer, self._config = scorer, config

    def eval(self) -> None:
        """Nothing is trained here."""

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items, one user after the other."""
        users = interaction[self._config["USER_ID_FIELD"]].cpu().numpy()
        return torch.from_numpy(self.scorer.matrix(users)).view(-1)

    def predict(self, interaction: Any) -> Tensor:
        """The scores of pairs."""
        users = interaction[self._config["USER_ID_FIELD"]].cpu().numpy()
        items = interaction[self._config["ITEM_ID_FIELD"]].cpu().numpy()
        return torch.from_numpy(self.scorer.pairs(users, items))


def _metrics(config: Any, model: Any, scorer: Any, train_data: Any, test_data: Any) -> dict[str, Any]:
    """Test results of the trained model and of the artifact, by RecBole's evaluation."""
    served = ServedModel(scorer, config) if isinstance(scorer, VectorScorer) else scorer.model
    if not test_data:  # as RecBole asks it, which evaluates nothing then
        return {}
    results, places = [], config["metric_decimal_place"]
    config["metric_decimal_place"] = _PLACES
    for candidate in (model, served):
        init_seed(config["seed"], config["reproducibility"])  # sampled evaluations draw
        evaluation = Evaluation(config, candidate)
        evaluation.eval_collector.data_collect(train_data)
        results.append(evaluation.evaluate(test_data, load_best_model=False))
    config["metric_decimal_place"] = places
    trained, own = ({key: float(value) for key, value in result.items()} for result in results)
    told = [key for key in trained if math.isfinite(trained[key]) and math.isfinite(own[key])]
    return {
        "trained": {key: trained[key] for key in told},
        "artifact": {key: own[key] for key in told},
        "largest_difference": max((abs(trained[key] - own[key]) for key in told), default=0.0),
    }


# --- parts -----------------------------------------------------------------------------------------


def _tensor(part: Any) -> SparseTable | np.ndarray:
    """A tensor, or (module, attribute): packed ones as tables."""
    if isinstance(part, Tensor):
        return _array(part)
    module, attribute = part
    slot = module.__dict__.get(SLOTS, {}).get(attribute)
    return _array(getattr(module, attribute)) if slot is None else table_of(*slot)


def _array(tensor: Tensor) -> np.ndarray:
    array = tensor.detach().cpu().numpy()
    return array.astype(np.float32 if array.dtype.kind == "f" else array.dtype)  # a copy, as weights go on


def _without_zeros(tensor: SparseTable | np.ndarray) -> SparseTable | np.ndarray:
    """A dense matrix as a table, if that is smaller."""
    if isinstance(tensor, SparseTable) or tensor.ndim != 2 or tensor.dtype != np.float32:
        return tensor
    smaller = sparse_bytes(int(np.count_nonzero(tensor)), tensor.shape, 4) < tensor.nbytes
    return SparseTable.of_dense(tensor) if smaller else tensor


def table_of(group: PackedGroup, number: int) -> SparseTable | np.ndarray:
    """A packed tensor as a table; dense if it is no matrix."""
    part = group.slices[number]
    rows = slice(part.first_row, part.first_row + part.rows + 1)
    pointers = group.row_pointers[rows].cpu().numpy().astype(np.int64)
    here = slice(int(pointers[0]), int(pointers[-1]))
    columns = group.column_ids[here].cpu().numpy().astype(smallest_unsigned(part.cols - 1))
    table = SparseTable(_array(group.weight[here]), columns, pointers_of(np.diff(pointers)), part.cols)
    return table if len(part.shape) == 2 else table.dense().reshape(part.shape)


def _all_tensors(model: nn.Module) -> dict[str, SparseTable | np.ndarray]:
    """All tensors of a model's state by their (first) names in the dense model."""
    state = model.state_dict()
    tensors: dict[str, SparseTable | np.ndarray] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for row in layout_of(model):
        for key in [key for key in state if key.startswith(f"{row['prefix']}.")]:
            del state[key]
        for number, tensor in enumerate(row.get("tensors", ())):
            tensors[tensor["names"][0]] = table_of(modules[row["prefix"]], number)
    known = {key for key, _ in model.named_parameters()} | {key for key, _ in model.named_buffers()}
    tensors.update({key: _array(value) for key, value in state.items() if key in known})
    return tensors


def _graph_of(dataset: Any) -> Graph:
    """Interactions of a dataset, each user's in the order of the data, or of time in sequential ones."""
    features = dataset.inter_feat
    users, items = (np.asarray(features[field]) for field in (dataset.uid_field, dataset.iid_field))
    lengths = getattr(dataset, "item_list_length_field", None)
    if lengths is not None and lengths in features:
        # A row is a target and what came before it, so a user's first item is in a list only.
        first = np.asarray(features[lengths]) == 1
        lists = np.asarray(features[dataset.iid_field + dataset.config["LIST_SUFFIX"]])
        users = np.concatenate([users[first], users])
        items = np.concatenate([lists[first, 0], items])
    order = np.argsort(users, kind="stable")
    counts = np.bincount(users, minlength=dataset.user_num)
    return Graph.of_counts(counts, items[order], dataset.item_num)


def _history_of(dataset: Any, config: Any) -> Graph:
    """All interactions of a dataset; RecBole's sequences leave out users who have one only."""
    graph = _graph_of(dataset)
    if not hasattr(dataset, "item_list_length_field") or config["benchmark_filename"] is not None:
        return graph
    whole = read_dataset(config)
    users, items = (whole.inter_feat[field].to_numpy() for field in (whole.uid_field, whole.iid_field))
    alone = np.flatnonzero(np.bincount(users, minlength=whole.user_num)[users] == 1)
    alone = alone[np.argsort(users[alone])]
    users, items = users[alone], items[alone]
    counts = graph.counts.copy()
    counts[users] += 1
    places = pointers_of(graph.counts)[users]
    return Graph(pointers_of(counts), np.insert(graph.items, places, items), graph.size)


def _without(graph: Graph, known: Graph | None) -> Graph:
    """A graph's interactions that are not in another one."""
    if known is None:
        return graph
    users = np.repeat(np.arange(len(graph.pointers) - 1), graph.counts)
    others = np.repeat(np.arange(len(known.pointers) - 1), known.counts)
    new = ~np.isin(users * graph.size + graph.items, others * graph.size + known.items)
    return Graph(
        pointers_of(np.bincount(users[new], minlength=len(graph.pointers) - 1)), graph.items[new], graph.size
    )


def _settings(config: Any) -> dict[str, Any]:
    """The settings that were given, without those that say where things are."""
    given = {
        k: v for k, v in config.given.items() if k not in (*LEFT_OUT, *PRIVATE_SETTINGS, "model", "dataset")
    }
    if config.dsl.width is not None:
        given["embedding_size"] = config.dsl.width
    told = finite(plain(given), str)  # such as an infinite norm_type
    return {"model": config["model"], "dataset": config["dataset"], "given": told}


def _not_served(lineage: list[str]) -> str:
    served = ", ".join(sorted([*models.VECTORS, *models.BY_RECBOLE]))
    own = lineage[0] not in models.BY_RECBOLE and any(name in models.BY_RECBOLE for name in lineage)
    reason = "RecBole would have to build a class that is not its own" if own else models.refused(lineage[0])
    return f"{lineage[0]} is not served, because {reason}; allowed are {served}."
