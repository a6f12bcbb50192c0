"""The only place that works around versions of RecBole, torch, numpy, scipy and pandas.

RecBole 1.2.1 was written for numpy 1, scipy < 1.13, pandas < 3 and torch < 2.6.  :func:`apply`
makes it run, with the same results, on current versions of all four, and without two packages that
have no current builds: torch_scatter and dgl.  The cures stay inside RecBole: its modules are given
their own view of ``torch``, ``pandas`` and ``len``, so nothing changes for other code in the
process.  Two cures cannot be kept that narrow, because they add names that are missing: numpy's old
type names and scipy's ``dok_matrix._update``.

``recbole.quick_start`` is never imported: it is the only part of RecBole that needs ray, which
has no wheels for Python 3.12 and later.
"""

from __future__ import annotations

import builtins
import contextlib
import enum
import functools
import importlib
import importlib.util
import logging
import os
import pickle
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from logging import getLogger
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch

from recbole_dsl import downloading
from recbole_dsl.errors import DataError, DSLError, on_one_line
from recbole_dsl.packed.layout import dense_state_dict
from recbole_dsl.tensor_file import CHECKPOINT, is_tensor_file, read_tensor_file

RECBOLE_VERSION = "1.2.1"

_applied = False


def check_stack() -> None:
    """Raise :class:`DSLError` when RecBole is missing or is not the version this package knows."""
    try:
        import recbole
    except ImportError as error:
        raise DSLError(
            f"RecBole is not installed: run `pip install --no-deps recbole=={RECBOLE_VERSION}`."
        ) from error
    found = getattr(recbole, "__version__", "unknown")
    if found != RECBOLE_VERSION:
        raise DSLError(
            f"recbole_dsl works with RecBole {RECBOLE_VERSION}, but version {found} is installed: "
            f"run `pip install --no-deps recbole=={RECBOLE_VERSION}`."
        )


def apply() -> None:
    """Make RecBole work on the installed versions.  Calling it again does nothing."""
    global _applied
    if _applied:
        return
    check_stack()
    _restore_numpy_names()
    _restore_dok_update()
    if _agg_sees_whole_column():
        _restore_elementwise_len()
    if _inplace_fillna_is_lost():
        _restore_fillna()
    if not pd.Series([0]).to_numpy().flags.writeable:
        _restore_own_memory()
    _restore_torch_load()
    _open_named_pickles_only()
    _collect_numbers_too()
    _read_words_for_missing()
    _drop_missing_by_row()
    if importlib.util.find_spec("torch_scatter") is None:
        _lend_torch_scatter()
    _build_kgat_without_dgl()
    _keep_ksr_in_single_precision()
    _say_what_ract_loads()
    _wrap_streams_once()
    _make_folders_side_by_side()
    _end_anomaly_detection()
    downloading.apply()
    _applied = True


class _ModuleView(types.ModuleType):
    """A module as RecBole sees it: the real one, with some functions replaced."""

    def __init__(self, module: types.ModuleType, **replaced: Any) -> None:
        super().__init__(module.__name__)
        vars(self).update(replaced, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_module"], name)


# numpy ---------------------------------------------------------------------------------------


def _restore_numpy_names() -> None:
    """Give numpy the type names RecBole asks for.

    config/configurator.py:630-635 (``Config.compatibility_settings``) reads ``np.float_``,
    ``np.complex_`` and ``np.unicode_``, gone in numpy 2, and sets ``np.float`` and others.
    data/interaction.py:31, evaluator/metrics.py and model/layers.py use the latter, so a dataset
    or a metric that is used before the first ``Config`` needs them as well.
    """
    names = {
        "float_": np.float64,
        "complex_": np.complex128,
        "unicode_": np.str_,
        "bool": np.bool_,
        "int": np.int_,
        "float": np.float64,
        "complex": np.complex128,
        "object": np.object_,
        "str": np.str_,
        "long": np.int_,
        "unicode": np.str_,
    }
    for name, value in names.items():
        # vars() and not hasattr(): numpy 1.26 warns when one of its removed names is looked up.
        if name not in vars(np):
            setattr(np, name, value)


# scipy ---------------------------------------------------------------------------------------


def _restore_dok_update() -> None:
    """Give ``dok_matrix`` its unchecked ``_update`` back, gone in scipy 1.13.

    lightgcn.py:111, ngcf.py:110, spectralcf.py:123, gcmc.py:174, ncl.py:131, kgin.py:356 and
    mcclk.py:425 fill their adjacency with it.  The public ``update`` refuses to do it.
    """
    if hasattr(scipy.sparse.dok_matrix, "_update"):
        return

    def _update(self: Any, data: dict[tuple[int, int], float]) -> None:
        self._dict.update(data)

    scipy.sparse.dok_matrix._update = _update


# pandas --------------------------------------------------------------------------------------


def _agg_sees_whole_column() -> bool:
    """Whether ``Series.agg(len)`` gives one number (pandas 3) and not one per element."""
    return not isinstance(pd.Series([[0], [0, 0]]).agg(len), pd.Series)


def _restore_elementwise_len() -> None:
    """Make ``feat[field].agg(len)`` give one length per row again.

    dataset.py:712, 792, 809 and 1217, kg_dataset.py:316 and sequential_dataset.py:165 find with
    it where a column of sequences has to be split.  pandas 3 hands the whole column to the
    function, so the ``len`` of these modules has to measure its rows.  None of them takes the
    ``len`` of a column anywhere else.
    """
    for name in ("dataset", "kg_dataset", "sequential_dataset"):
        module = importlib.import_module(f"recbole.data.dataset.{name}")
        vars(module)["len"] = _row_lengths


def _row_lengths(thing: Any) -> Any:
    return thing.map(builtins.len) if isinstance(thing, pd.Series) else builtins.len(thing)


def _inplace_fillna_is_lost() -> bool:
    """Whether ``frame[column].fillna(..., inplace=True)`` leaves the frame as it was (pandas 3)."""
    frame = pd.DataFrame({"column": [np.nan]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame["column"].fillna(0.0, inplace=True)
    return bool(frame["column"].isna().any())


def _restore_fillna() -> None:
    """Fill missing values in place of the calls that no longer do it.

    dataset.py:648 and 650 (``_fill_nan``): tokens and floats.  Unfilled, the padding row turns
    into -2**63 and NaN without any message.  dataset.py:501 (``_load_feat``): empty sequences, where
    RecBole would fail on the NaN, are filled when they are read (:func:`_read_words_for_missing`).
    RecBole's own calls remain and have nothing left to do.
    """
    from recbole.data.dataset import dataset as module
    from recbole.utils import FeatureType

    Dataset = module.Dataset
    fill_nan, load_feat = Dataset._fill_nan, Dataset._load_feat

    @functools.wraps(fill_nan)
    def _fill_nan(self: Any) -> None:
        for feat_name in self.feat_name_list:
            feat = getattr(self, feat_name)
            for field in feat:
                if self.field2type[field] == FeatureType.TOKEN:
                    feat[field] = feat[field].fillna(value=0)
                elif self.field2type[field] == FeatureType.FLOAT:
                    feat[field] = feat[field].fillna(value=feat[field].mean())
        with _no_chained_assignment_warning():
            fill_nan(self)

    @functools.wraps(load_feat)
    def _load_feat(self: Any, filepath: str, source: Any) -> Any:
        with _no_chained_assignment_warning():
            return load_feat(self, filepath, source)

    Dataset._fill_nan = _fill_nan
    Dataset._load_feat = _load_feat


@contextlib.contextmanager
def _no_chained_assignment_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.ChainedAssignmentError)
        yield


def _restore_own_memory() -> None:
    """Give the tensors of an ``Interaction`` memory of their own.

    dataset.py:2202 and 2206 (``_dataframe_to_interaction``) make tensors out of columns without a
    copy.  pandas 3 hands out read-only columns, since frames share them: torch warns about
    undefined behaviour, and a write to a tensor would change every frame that shares the column.
    """
    from recbole.data.dataset.dataset import Dataset

    convert = Dataset._dataframe_to_interaction

    @functools.wraps(convert)
    def _dataframe_to_interaction(self: Any, data: pd.DataFrame) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            interaction = convert(self, data)
        for name in interaction.columns:
            interaction.interaction[name] = interaction.interaction[name].clone()
        return interaction

    Dataset._dataframe_to_interaction = _dataframe_to_interaction


_NO_NUMBER = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
    *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)


def _read_words_for_missing() -> None:
    """Read "NA", "null" or "None" of an atomic file as tokens; only an empty token is a missing one.

    dataset.py:486 (``_load_feat``) leaves it to pandas, for which they are missing: users, items and categories
    of such a name are lost. Empty sequences become empty texts, as dataset.py:501 does where pandas lets it.
    """
    from recbole.data.dataset import dataset as module

    def read_csv(*args: Any, **kwargs: Any) -> pd.DataFrame:
        # The header of an atomic file says the type: "user_id:token", "class:token_seq", "vector:float_seq".
        tokens = (":token", ":token_seq")
        missing = {name: [""] if name.endswith(tokens) else list(_NO_NUMBER) for name in kwargs["usecols"]}
        frame = pd.read_csv(*args, **kwargs, keep_default_na=False, na_values=missing)
        for column in frame.columns:
            if str(column).endswith("_seq"):
                frame[column] = frame[column].fillna("")
        return frame

    module.pd = _ModuleView(pd, read_csv=read_csv)


def _drop_missing_by_row() -> None:
    """Drop the rows without a user or an item, and no others.

    dataset.py:824-844 (``_filter_nan_user_or_item``) takes labels of rows for their places, which differ once
    rows without a user are gone: then others are dropped in place of those without an item.
    """
    from recbole.data.dataset.dataset import Dataset

    def _filter_nan_user_or_item(self: Any) -> None:
        for field, name in ((self.uid_field, "user"), (self.iid_field, "item")):
            for table in (f"{name}_feat", "inter_feat"):
                feat = getattr(self, table)
                if feat is None or field is None:
                    continue
                missing = feat.index[feat[field].isnull()]
                if len(missing):
                    self.logger.warning(
                        f"In {table}, line {list(missing + 2)}, {field} do not exist, so they will be removed."
                    )
                    setattr(self, table, feat.drop(missing))

    Dataset._filter_nan_user_or_item = _filter_nan_user_or_item


# torch ---------------------------------------------------------------------------------------

_LOADING_TRAINER = "recbole.trainer.trainer"  # 323, 583
_LOADING_MODELS = (
    "recbole.model.context_aware_recommender.kd_dagfm",  # 56
    "recbole.model.general_recommender.convncf",  # 82
    "recbole.model.general_recommender.nais",  # 127
    "recbole.model.general_recommender.neumf",  # 84, 85
    "recbole.model.general_recommender.ract",  # 75, 84
    "recbole.model.sequential_recommender.s3rec",  # 120
)

_written_here: dict[str, tuple[int, int]] = {}


def _restore_torch_load() -> None:
    """Let RecBole read its checkpoints.

    They hold RecBole's ``Config`` and use pickle protocol 4, both of which torch >= 2.6 refuses
    by default.  A file that this process wrote is read without limits.  Any other file may come
    from anywhere, and a pickle can run any code, so only the types of a plain RecBole checkpoint
    are accepted in it.

    Trainers read a checkpoint back into the sparse model that wrote it.  Models read one of an
    earlier training, while they are dense still, so a sparse one is handed to them dense.
    """
    vars(importlib.import_module(_LOADING_TRAINER))["torch"] = _ModuleView(torch, load=_load, save=_save)
    for name in _LOADING_MODELS:
        vars(importlib.import_module(name))["torch"] = _ModuleView(torch, load=_load_dense)


def _open_named_pickles_only() -> None:
    """Open pickles of data that the user names, and no others: a pickle can run any code.

    data/utils.py:54-61 and 113-122 open what lies in ``checkpoint_dir``, too, which may be a folder that was
    downloaded. Without ``dataset_save_path`` or ``dataloaders_save_path`` data are read from their own files.
    general_recommender/ldiffrec.py:232 lets numpy open a pickle in place of the vectors of items.
    """
    module: Any = importlib.import_module("recbole.data.utils")
    create, load = module.create_dataset, module.load_split_dataloaders
    sees_no_file = _ModuleView(os, path=_ModuleView(os.path, exists=lambda file: False))

    @functools.wraps(create)
    def create_dataset(config: Any) -> Any:
        module.os = os if config["dataset_save_path"] else sees_no_file
        try:
            data = create(config)
        finally:
            module.os = os
        if (
            config["dataset_save_path"] and data.config is config
        ):  # RecBole made it, as the one that it has read had other settings
            _tell_unused(config, "dataset_save_path")
        return data

    @functools.wraps(load)
    def load_split_dataloaders(config: Any) -> Any:
        if not config["dataloaders_save_path"]:
            return None
        loaders = load(config)
        if loaders is None:
            _tell_unused(config, "dataloaders_save_path")
        return loaders

    module.pickle = _ModuleView(pickle, load=_load_named_pickle)
    module.create_dataset, module.load_split_dataloaders = create_dataset, load_split_dataloaders
    vars(importlib.import_module("recbole.data"))["create_dataset"] = create_dataset
    ldiffrec = importlib.import_module("recbole.model.general_recommender.ldiffrec")
    vars(ldiffrec)["np"] = _ModuleView(np, load=lambda file, allow_pickle: np.load(file, allow_pickle=False))


def _tell_unused(config: Any, key: str) -> None:
    """That a file which the user names is not taken, of which RecBole says nothing."""
    getLogger().warning(
        f"{key}='{config[key]}' is not used, because it was saved with another seed or other settings of the "
        "data; they are prepared anew."
    )


def _load_named_pickle(file: Any) -> Any:
    try:
        return pickle.load(file)
    except Exception as error:
        raise DataError(
            f"'{file.name}' cannot be read ({on_one_line(error)}); allowed is a file that RecBole's "
            "save_dataset or save_dataloaders wrote."
        ) from error


def _collect_numbers_too() -> None:
    """Let ItemCoverage, AveragePopularity, GiniIndex and TailPercentage be computed.

    They need the number of items or counts of items, which evaluator/collector.py:227 (``get_data_struct``)
    would move to the CPU, as if they were tensors.
    """
    from recbole.evaluator.collector import Collector

    get = Collector.get_data_struct

    @functools.wraps(get)
    def get_data_struct(self: Any) -> Any:
        collected = self.data_struct._data_dict
        others = {name: value for name, value in collected.items() if not isinstance(value, torch.Tensor)}
        for name in others:
            del collected[name]
        found = get(self)
        collected.update(others)
        found._data_dict.update(others)
        return found

    Collector.get_data_struct = get_data_struct


@contextlib.contextmanager
def no_tensorboard() -> Iterator[None]:
    """Trainers that are made meanwhile have no writer for TensorBoard, which makes a folder at once."""
    module: Any = importlib.import_module(_LOADING_TRAINER)
    before = module.get_tensorboard
    module.get_tensorboard = lambda logger: None
    try:
        yield
    finally:
        module.get_tensorboard = before


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


def _save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
    torch.save(obj, f, *args, **kwargs)
    if isinstance(f, (str, os.PathLike)):
        path = os.path.realpath(f)
        _written_here[path] = _stamp(path)


def _load(f: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(f, (str, os.PathLike)):
        path = os.path.realpath(f)
        if path in _written_here and _written_here[path] == _stamp(path):
            return torch.load(f, *args, **{"weights_only": False, **kwargs})
    # Tensors and plain values only, as in ours; what else a file may be is told below.
    with contextlib.suppress(pickle.UnpicklingError, KeyError, EOFError, ValueError, RuntimeError):
        return torch.load(f, *args, **{**kwargs, "weights_only": True})
    try:
        return torch.load(f, *args, **{"pickle_module": _checkpoint_pickle, "weights_only": False, **kwargs})
    except OSError:
        raise
    except Exception as error:  # a file that is no checkpoint fails in any way
        raise DSLError(f"Cannot read the checkpoint {str(f)!r}: {on_one_line(error)}.") from error


def read_dense_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint of RecBole's, or one of ours with dense tensors: state dict, other parameters, settings.

    A pickle is read by what builds only tensors, settings and names of models; anything else in it is refused.

    Raises:
        DSLError: the file cannot be read, or holds something else.
    """
    state = _load_dense(path, map_location="cpu")
    if not isinstance(state, dict) or not isinstance(state.get("state_dict"), dict):
        raise DSLError(f"'{os.fspath(path)}' is no checkpoint: it holds no 'state_dict'.")
    return state


def _load_dense(f: Any, *args: Any, **kwargs: Any) -> Any:
    """What a model's constructor reads: RecBole's checkpoint, or one of ours with dense tensors."""
    if not is_tensor_file(f):
        return _load(f, *args, **kwargs)
    state = read_tensor_file(f, *CHECKPOINT)
    return {**state, "state_dict": dense_state_dict(state["state_dict"], state["layout"])}


class _Name:
    """In the place of a class that a file names, which pickle could call with whatever else the file holds."""

    def __init__(self, name: str) -> None:
        self.__name__ = name


@functools.cache
def _stored_config() -> type:
    """RecBole's settings as they were stored; its own class runs texts that it is called with."""
    from recbole.config import Config

    class StoredConfig(Config):
        """Attributes alone."""

        def __init__(self, *_: Any, **__: Any) -> None:
            self.final_config_dict: dict[str, Any] = {}

    return StoredConfig


class _CheckpointUnpickler(pickle.Unpickler):
    """Builds only what a RecBole checkpoint consists of: tensors, settings, names of models.

    A pickle may call whatever this finds, so what does more than to hold what it is given is not found.
    """

    _plain = frozenset(
        {
            ("collections", "OrderedDict"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "scalar"),
            ("torch", "device"),
            ("torch", "Size"),
            ("torch._utils", "_rebuild_parameter"),
            ("torch._utils", "_rebuild_sparse_tensor"),
            ("torch.serialization", "_get_layout"),
            ("torch._utils", "_rebuild_tensor_v2"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._plain:
            return super().find_class(module, name)
        if (module, name) == ("yaml.loader", "FullLoader"):  # that of RecBole's Config
            return _Name(name)
        if module.startswith("recbole."):
            from recbole.config import Config
            from recbole.model.abstract_recommender import AbstractRecommender

            found = super().find_class(module, name)
            if found is Config:
                return _stored_config()
            if isinstance(found, type) and issubclass(found, enum.Enum) and len(found) > 0:
                return found
            if isinstance(found, type) and issubclass(found, AbstractRecommender):
                return _Name(name)
        raise pickle.UnpicklingError(
            f"it was not written by this process and holds {module}.{name}, "
            "which does not belong into a file of weights"
        )


def _load_checkpoint_pickle(file: Any, **kwargs: Any) -> Any:
    return _CheckpointUnpickler(file, **kwargs).load()


# torch.load takes a module of this shape as its `pickle_module`.
_checkpoint_pickle = types.SimpleNamespace(
    __name__=__name__, Unpickler=_CheckpointUnpickler, load=_load_checkpoint_pickle
)


# several processes -------------------------------------------------------------------------------


def _make_folders_side_by_side() -> None:
    """Let processes that start together make the same folders.

    RecBole's ``ensure_dir`` (utils/utils.py:43) looks first and makes the folder then, by when another
    process may have made it.
    """
    names = ("utils.utils", "utils", "utils.logger", "trainer.trainer", "data.dataset.dataset", "data.utils")
    for name in names:
        vars(importlib.import_module(f"recbole.{name}"))["ensure_dir"] = _ensure_dir


def _ensure_dir(dir_path: str) -> None:
    os.makedirs(dir_path, exist_ok=True)


# packages without current builds -----------------------------------------------------------------


def _lend_torch_scatter() -> None:
    """Run KGIN and MCCLK without torch_scatter, which has to be compiled for the installed torch.

    kgin.py:54 and mcclk.py:41 import two of its functions whenever their layers run; for as long as
    that takes there is a module of that name.
    """
    lent = types.ModuleType("torch_scatter")
    vars(lent).update(scatter_mean=scatter_mean, scatter_softmax=scatter_softmax)
    for name in ("kgin", "mcclk"):
        layer = importlib.import_module(f"recbole.model.knowledge_aware_recommender.{name}").Aggregator
        layer.forward = _with_module(lent, layer.forward)


def _with_module(module: types.ModuleType, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as it runs while ``module`` can be imported."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        sys.modules[module.__name__] = module
        try:
            return function(*args, **kwargs)
        finally:
            del sys.modules[module.__name__]

    return wrapped


def scatter_mean(src: torch.Tensor, index: torch.Tensor, dim: int, dim_size: int) -> torch.Tensor:
    """Means of the rows of ``src`` (n, columns) that have one ``index`` (n,): (dim_size, columns).

    Rows without any are zero. ``dim`` is 0.
    """
    sums = src.new_zeros(dim_size, *src.shape[1:]).index_add(dim, index, src)
    counts = src.new_zeros(dim_size).index_add(0, index, src.new_ones(index.numel())).clamp_min(1)
    return sums / counts.unsqueeze(1)


def scatter_softmax(src: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """Softmax, column by column, over the rows of ``src`` (n, columns) that have one ``index`` (n,).

    ``dim`` is 0.
    """
    where = index.unsqueeze(1).expand_as(src)
    size = int(index.max()) + 1
    greatest = src.new_full((size, src.shape[1]), -torch.inf).scatter_reduce(dim, where, src.detach(), "amax")
    powers = (src - greatest.gather(dim, where)).exp()
    sums = src.new_zeros(size, src.shape[1]).scatter_add(dim, where, powers)
    return powers / sums.gather(dim, where)


def _build_kgat_without_dgl() -> None:
    """Build KGAT's first attention matrix from its edges, for which RecBole asks dgl.

    kgat.py:87 and 146-156 use ``preserve_nodes`` and ``adjacency_matrix``, which dgl dropped in 1.0;
    the versions before have no builds for current Pythons. RecBole issues #1758, #1978, #2201.
    """
    from recbole.model.knowledge_aware_recommender.kgat import KGAT

    build = KGAT.__init__

    @functools.wraps(build)
    def __init__(self: Any, config: Any, dataset: Any) -> None:
        def ckg_graph(form: str = "coo", value_field: str | None = None) -> Any:
            # Of the dgl graph KGAT makes nothing but the matrix below.
            return None if form == "dgl" else type(dataset).ckg_graph(dataset, form, value_field)

        dataset.ckg_graph = ckg_graph
        try:
            build(self, config, dataset)
        finally:
            del dataset.ckg_graph

    def init_graph(self: Any) -> torch.Tensor:
        heads, tails, relations = (t.cpu().numpy() for t in (self.all_hs, self.all_ts, self.all_rs))
        total = scipy.sparse.coo_matrix(tuple(self.matrix_size))
        for relation in range(1, self.n_relations):
            edges = relations == relation
            ones = np.ones(int(edges.sum()))
            adjacency = scipy.sparse.coo_matrix((ones, (heads[edges], tails[edges])), tuple(self.matrix_size))
            degrees = np.asarray(adjacency.sum(axis=1)).ravel()
            inverse = np.divide(1.0, degrees, out=np.zeros_like(degrees), where=degrees > 0)
            total = total + scipy.sparse.diags(inverse) @ adjacency
        total = total.tocoo()
        indices = torch.from_numpy(np.stack([total.row, total.col]).astype(np.int64))
        values = torch.from_numpy(total.data.astype(np.float32))
        return torch.sparse_coo_tensor(indices, values, self.matrix_size).to(self.device)

    KGAT.__init__ = __init__
    KGAT.init_graph = init_graph


# models ------------------------------------------------------------------------------------------


def _keep_ksr_in_single_precision() -> None:
    """Give KSR's pre-trained relations the type of its weights.

    dataset.py:2173 (``get_preload_weight``) returns float64, which ksr.py:92 takes over for the
    relations, and every training fails at ksr.py:153.
    """
    from recbole.model.sequential_recommender.ksr import KSR

    build = KSR.__init__

    @functools.wraps(build)
    def __init__(self: Any, config: Any, dataset: Any) -> None:
        build(self, config, dataset)
        self.relation_Matrix = self.relation_Matrix.to(self.entity_embedding.weight.dtype)

    KSR.__init__ = __init__


def _say_what_ract_loads() -> None:
    """Complete a message of RaCT's, which names its file but has no place for it.

    ract.py:76 and 85; logging prints a traceback for each.
    """
    from recbole.model.general_recommender.ract import RaCT

    build = RaCT.__init__

    def complete(record: logging.LogRecord) -> bool:
        if record.msg == "Load pretrained model from":
            record.msg += " %s"
        return True

    @functools.wraps(build)
    def __init__(self: Any, config: Any, dataset: Any) -> None:
        logger = logging.getLogger()
        logger.addFilter(complete)
        try:
            build(self, config, dataset)
        finally:
            logger.removeFilter(complete)

    RaCT.__init__ = __init__


def _end_anomaly_detection() -> None:
    """Turn off what importing SINE turns on for the whole process: autograd's search for anomalies.

    sine.py:25 is left from debugging. It looks for a NaN in every gradient and keeps a stack trace of every
    operation, in RecBole for all sequential and knowledge-aware models, here, where their packages are
    imported to be cured, for every model. Losses that are a NaN RecBole finds without it. Who wants to
    search turns it on after importing this package.
    """
    importlib.import_module("recbole.model.sequential_recommender")
    torch.autograd.set_detect_anomaly(False)


# many runs in one process ----------------------------------------------------------------------


def _wrap_streams_once() -> None:
    """Let colorama wrap the standard streams at the first of a process's runs only.

    utils/logger.py:74 (``init_logger``) wraps them at every run, the wrapped ones again: after some two
    hundred runs a line that is printed passes through more wrappers than Python's stack holds.
    """
    from colorama import initialise
    from recbole.utils import logger

    plain = logger.init

    @functools.wraps(plain)
    def init(*args: Any, **kwargs: Any) -> None:
        if sys.stdout is not initialise.wrapped_stdout or sys.stderr is not initialise.wrapped_stderr:
            plain(*args, **kwargs)

    logger.init = init


# the training progress bar -------------------------------------------------------------------


@contextlib.contextmanager
def described_progress(text: Callable[[], str]) -> Iterator[None]:
    """Append ``text()`` to the description of RecBole's training progress bars.

    Args:
        text: Called once for each bar, that is at the start of every training epoch.
    """
    from recbole.trainer import trainer as module
    from tqdm.utils import disp_len

    plain = module.tqdm

    @functools.wraps(plain)
    def tqdm(*args: Any, **kwargs: Any) -> Any:
        desc = kwargs.get("desc")
        if desc and "Train" in desc:
            added = f" {text()}"
            kwargs["desc"] = desc + added
            if kwargs.get("ncols"):
                # RecBole fixes the width of the whole line; the bar itself must not shrink.
                kwargs["ncols"] += disp_len(added)
        return plain(*args, **kwargs)

    module.tqdm = tqdm
    try:
        yield
    finally:
        module.tqdm = plain
