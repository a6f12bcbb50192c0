"""Models that RecBole scores, built from an artifact where RecBole is installed and no dataset is there."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from logging import getLogger
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import compat

compat.apply()  # before anything of RecBole is imported

from recbole.data.dataset import Dataset, SequentialDataset  # noqa: E402
from recbole.data.interaction import Interaction  # noqa: E402
from recbole.data.transform import construct_transform  # noqa: E402
from recbole.model.abstract_recommender import AbstractRecommender  # noqa: E402
from recbole.utils import FeatureSource, FeatureType, ModelType, init_seed  # noqa: E402

from ..config import RecBoleDSLConfig, no_flags  # noqa: E402
from ..costs import undisturbed  # noqa: E402
from ..errors import ConfigError, DSLError, RequestError, on_one_line  # noqa: E402
from ..neumf import ranking  # noqa: E402
from ..packed.surgery import pack  # noqa: E402
from ..property_files import METHOD_KEY, method_names  # noqa: E402
from ..recbole_names import OF_A_PROCESS  # noqa: E402
from ..sparsity.targets import list_tensors  # noqa: E402
from .artifact import Artifact, refusal  # noqa: E402
from .encoders import Graph  # noqa: E402
from .models import BY_RECBOLE  # noqa: E402
from .search import Found  # noqa: E402
from .table import SparseTable, lengths_one  # noqa: E402
from .top import best  # noqa: E402

_KEPT_OUT = (
    *("train_stage", "train_method", "use_pretrain", "warm_up"),  # the weights are in the artifact
    *("pre_model_path", "pretrain_path", "mf_pretrain_path", "mlp_pretrain_path", "dsl_start_from"),
    *("preload_weight", "additional_feat_suffix", "benchmark_filename", "dsl_width"),
    *("dataset_save_path", "dataloaders_save_path", "checkpoint_dir", "log_wandb"),
    *OF_A_PROCESS,
)
"""Settings that have no meaning for a model that is only asked, or name files."""


class ServedConfig(RecBoleDSLConfig):
    """The settings of a model that is built to be asked: no dataset is needed, and no folder to write into."""

    def _check_dataset(self) -> None:
        """Nothing is read."""

    def _check_dsl(self, dsl: Any) -> None:
        """Nothing is trained."""


def served_data(config: Any, users: int, items: int, graph: Graph | None) -> Any:
    """A dataset of RecBole's class that was not read from files.

    It has what a model's constructor may ask for: numbers of users and items, and ``graph``'s interactions.
    """
    kind: Any = SequentialDataset if config["MODEL_TYPE"] == ModelType.SEQUENTIAL else Dataset
    data = object.__new__(kind)
    data.config, data.dataset_name, data.logger = config, config["dataset"], getLogger(__name__)
    data._get_preset()
    data._get_field_from_config()
    data.user_feat = data.item_feat = None
    counts, numbers = (
        (graph.counts, graph.items) if graph else (np.zeros(users, np.int64), np.zeros(0, np.int64))
    )
    pairs = {data.uid_field: np.repeat(np.arange(users), counts), data.iid_field: numbers.astype(np.int64)}
    data.inter_feat = Interaction({name: torch.from_numpy(column) for name, column in pairs.items()})
    for name, size in ((data.uid_field, users), (data.iid_field, items)):
        data.set_field_property(name, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)
        data.field2id_token[name] = np.broadcast_to("", size)
    data.feat_name_list = ["inter_feat"]
    if kind is SequentialDataset:
        data.max_item_list_len = config["MAX_ITEM_LIST_LENGTH"]
        data.item_list_length_field = config["ITEM_LIST_LENGTH_FIELD"]
        data._aug_presets()
    return data


def _split(pairs: Any, size: int) -> list[Any]:
    """Rows in pieces of ``size`` at most, as RecBole's evaluation asks for them."""
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


class ModelScorer:
    """Scores are what RecBole's model says; one question at a time, since models keep caches."""

    def __init__(self, model: Any, config: Any, data: Any, sequences: Graph | None) -> None:
        self.model, self._config, self._data, self._sequences = model, config, data, sequences
        self._transform = construct_transform(config)
        self._lock = threading.Lock()

    @classmethod
    def of(cls, artifact: Artifact, graphs: dict[str, Graph], device: str | None = None) -> ModelScorer:
        """The scorer of an artifact, on the CPU or another device; ArtifactError if it cannot be built."""
        manifest = artifact.manifest
        if manifest.encoder not in BY_RECBOLE or manifest.config.get("model") != manifest.encoder:
            raise refusal(artifact.folder, f"a model {manifest.encoder[:50]!r} is not served by RecBole")
        try:
            config = _config(manifest.config)
            config["device"] = torch.device(device or "cpu")
            data = served_data(config, manifest.users, manifest.items, graphs.get("graph"))
            with undisturbed():
                init_seed(config["seed"], config["reproducibility"])
                model = config.model_class(config, data).to(config["device"])
            _put_weights(model, artifact.tensors)
        except DSLError as error:
            raise refusal(artifact.folder, on_one_line(error, with_type=False)) from None
        except Exception as error:
            raise refusal(
                artifact.folder, f"RecBole cannot build its model {manifest.model} ({on_one_line(error)[:200]})"
            ) from error
        model.eval()
        sequential = BY_RECBOLE[manifest.encoder] == "sequences"
        return cls(model, config, data, graphs.get("history") if sequential else None)

    def top(self, users: np.ndarray, k: int, excluded: Sequence[np.ndarray]) -> list[Found]:
        """See :class:`~recbole_dsl.serving.scorers.Scorer`."""
        found = []
        for first in range(0, len(users), _USERS):
            scores = self.matrix(users[first : first + _USERS])
            for row, left_out in zip(scores, excluded[first : first + _USERS], strict=True):
                row[left_out] = -np.inf
                found.append(best(row, k))
        return found

    def products(self, users: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """See :class:`~recbole_dsl.serving.scorers.Scorer`."""
        parts = range(0, len(users), _USERS)
        return np.concatenate([self.matrix(users[first : first + _USERS])[:, candidates] for first in parts])

    def score(self, products: np.ndarray) -> np.ndarray:
        """See :class:`~recbole_dsl.serving.scorers.Scorer`; the model's own are scores already."""
        return products

    @torch.no_grad()
    def matrix(self, users: np.ndarray) -> np.ndarray:
        """Scores of all items, float32, for each of some users."""
        with self._lock:
            batch = self._interactions(torch.from_numpy(np.asarray(users, np.int64)))
            scores = self._scores(batch.to(self._config["device"])).view(len(users), -1)
            return scores.float().cpu().numpy().copy()

    def _scores(self, batch: Any) -> Tensor:
        with ranking(self.model) as ours:
            if ours or type(self.model).full_sort_predict is not AbstractRecommender.full_sort_predict:
                return self.model.full_sort_predict(batch)
        items = self._data.item_num
        pieces = []
        for row in range(len(batch)):
            pairs = batch[row : row + 1].repeat_interleave(items)
            pairs.update(
                Interaction({self._data.iid_field: torch.arange(items, device=self._config["device"])})
            )
            pieces += [self.model.predict(some) for some in _split(pairs, self._config["eval_batch_size"])]
        return torch.cat(pieces)

    def _interactions(self, users: Tensor) -> Any:
        columns = {self._data.uid_field: users}
        if self._config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            if self._sequences is None:
                raise RequestError(
                    "The artifact does not hold the sequences of its users; allowed is one that was exported "
                    "with --with-history."
                )
            longest = self._data.max_item_list_len
            rows = [self._sequences.row(int(user))[-longest:].astype(np.int64) for user in users]
            padded = torch.zeros(len(rows), longest, dtype=torch.int64)
            for place, row in enumerate(rows):
                padded[place, : len(row)] = torch.from_numpy(row)
            columns[self._data.iid_field + self._config["LIST_SUFFIX"]] = padded
            # A user without a sequence is one whose only item is padding.
            lengths = torch.tensor([max(1, len(row)) for row in rows])
            columns[self._data.item_list_length_field] = lengths
            # GRU4RecCPR and SASRecCPR compute a loss beside their scores, which do not depend on this target.
            columns[self._data.iid_field] = torch.ones(len(rows), dtype=torch.int64)
        return self._transform(self._data, Interaction(columns))

    @torch.no_grad()
    def similar(self, item: int, k: int) -> Found:
        """See :class:`~recbole_dsl.serving.scorers.Scorer`: by the model's ``item_embedding``."""
        table = getattr(self.model, "item_embedding", None)
        rows = getattr(table, "weight", None)
        if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) < self._data.item_num:
            raise RequestError(
                f"{type(self.model).__name__} has no vectors of items to compare; allowed are models that "
                "have an item_embedding."
            )
        with self._lock:
            vectors = lengths_one(rows[: self._data.item_num].detach().float().cpu().numpy())
        assert isinstance(vectors, np.ndarray)
        cosines = vectors @ vectors[item]
        cosines[[0, item]] = -np.inf
        return best(cosines, k)


_USERS = 64
"""Users that are scored together."""


def _config(kept: dict[str, Any]) -> ServedConfig:
    given = {key: value for key, value in kept["given"].items() if key not in _KEPT_OUT}
    method = given.get(METHOD_KEY)
    if method is not None and method not in method_names():  # which would be read as a file
        raise ConfigError(f"{METHOD_KEY}={str(method)[:50]!r} is no method of this version")
    given |= {"dsl_init": "random", "dsl_init_values": "model", "show_progress": False}
    with no_flags():
        return ServedConfig(str(kept["model"]), str(kept["dataset"]), None, given, evaluates=False)


@torch.no_grad()
def _put_weights(model: Any, tensors: dict[str, Any]) -> None:
    """Give a dense model the artifact's tensors, packed where sparse; ValueError if they do not fit."""
    by_name = {info.name: info for info in list_tensors(model)}
    for name, tensor in tensors.items():
        if not isinstance(tensor, SparseTable):
            continue
        info = by_name[name]
        if info.shape != tensor.shape:
            raise ValueError(f"{name} has shape {tensor.shape}")
        if not info.packable:  # a masked one, of a recurrent layer for instance
            info.parameter.copy_(torch.from_numpy(tensor.dense()))
            continue
        live = torch.from_numpy(tensor.row_numbers() * tensor.width + tensor.columns)
        pack(model, name, [info], live, torch.from_numpy(tensor.values))
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if isinstance(tensor, SparseTable):
            continue
        target = named[name]
        if tuple(target.shape) != tensor.shape:
            raise ValueError(f"{name} has shape {tensor.shape}")
        target.copy_(torch.from_numpy(np.array(tensor)))
