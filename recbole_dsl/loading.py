"""A trained run, loaded from its checkpoint: settings, data and sparse model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

from . import compat, property_files, recbole_names
from .config import RecBoleDSLConfig, no_flags
from .errors import CheckpointError
from .experiment import build_model, load_data
from .settings import KEYS
from .sparsity.names import TOPOLOGIES_OF_SHAPES
from .training.checkpoint import load_weights, read_checkpoint, refuse_other_tokens, tokens_of
from .training.trainer import sparse_trainer

LEFT_OUT: Final = (
    *("dsl_resume", "dsl_result", "dsl_save_every", "dsl_start_from", "config_files"),
    *("log_wandb", "wandb_project", "save_dataset", "save_dataloaders"),
    *("dataset_save_path", "dataloaders_save_path", "checkpoint_dir"),  # pickles
    *recbole_names.OF_A_PROCESS,
)
"""Settings that have no meaning for a trained run, or would open files that could run code."""


class _LoadedConfig(RecBoleDSLConfig):
    """The settings of a trained run, with which nothing is trained or written."""

    def _check_dsl(self, dsl: Any) -> None:
        """No folder has to be writable."""


def load_data_and_model(
    model_file: str | os.PathLike[str], model_class: type | None = None, **settings: Any
) -> tuple[Any, Any, Any, Any, Any, Any]:
    """The counterpart of RecBole's ``load_data_and_model`` for checkpoints of sparse training.

    Nothing in the file is run: its settings are read as literals.

    Args:
        model_file: a best or a last checkpoint (``….dsl``, ``…-last.dsl``).
        model_class: the class of a model that is not RecBole's own.
        settings: those to change, such as ``data_path`` or ``gpu_id``.

    Returns:
        (config, model, dataset, train_data, valid_data, test_data); the model is sparse, in evaluation mode,
        and can be given to RecBole's tools that call ``predict`` or ``full_sort_predict``.

    Raises:
        CheckpointError: the file cannot be read, or its model is not RecBole's and ``model_class`` not given.
        ConfigError: the settings do not suit this installation.
        DataError: the dataset is not there, or has other users or items than that of the training, or the
            same in another order.
    """
    return load(model_file, model_class, settings)


def load(
    model_file: str | os.PathLike[str],
    model_class: type | None,
    settings: dict[str, Any],
    device: str | None = None,
) -> tuple[Any, Any, Any, Any, Any, Any]:
    """The same on a device, whatever ``gpu_id`` says."""
    state = read_checkpoint(model_file)
    config = _config_of(state, model_file, model_class, settings)
    if device is not None:
        config["device"] = torch.device(device)
    dataset, train_data, valid_data, test_data = load_data(config, log=False)
    refuse_other_tokens(model_file, state.get("tokens", {}), tokens_of(dataset))
    model = build_model(config, train_data)
    with nothing_written(config):
        # The trainer makes the model sparse; its optimizer has no state before the first step.
        sparse_trainer(config["MODEL_TYPE"], *config.lineage)(config, model, train_data)
    load_weights(model, state)
    model.eval()
    return config, model, dataset, train_data, valid_data, test_data


@contextmanager
def nothing_written(config: Any) -> Iterator[None]:
    """Make trainers that are not to train: RecBole's make folders for checkpoints and TensorBoard at once."""
    folder = config["checkpoint_dir"]
    with tempfile.TemporaryDirectory() as empty, compat.no_tensorboard():
        config["checkpoint_dir"] = empty
        try:
            yield
        finally:
            config["checkpoint_dir"] = folder


def _config_of(
    state: dict[str, Any], file: str | os.PathLike[str], model_class: type | None, settings: dict[str, Any]
) -> RecBoleDSLConfig:
    kept, name = state["config"], str(state["config"]["model"])
    given = {key: value for key, value in state["given"].items() if key not in LEFT_OUT}
    own = not str(state.get("model_class", recbole_names.MODELS)).startswith(recbole_names.MODELS)
    if model_class is None and (own or name.lower() not in recbole_names.model_files()):
        raise CheckpointError(
            f"'{os.fspath(file)}' is of model {name!r}, which is not RecBole's own; allowed is to give its "
            "class as model_class (--model=package.module:Class on the command line)."
        )
    given["dsl_method"] = kept["dsl_method"]  # which may have been the default of its day
    of_file: dict[str, Any] = {}
    if kept["dsl_method"] not in property_files.method_names():  # a file of one's own, whose settings are here
        of_file = {key: kept[key] for key in KEYS.difference(LEFT_OUT) if key in kept}
        of_file.pop("dsl_budget" if kept["dsl_budget"] is None else "dsl_density", None)
        given = {**of_file, **given, "dsl_method": "static"}
    if not {"dsl_density", "dsl_budget"} & {*given, *settings}:
        key = "dsl_density" if kept["dsl_budget"] is None else "dsl_budget"
        given[key] = kept[key]
    if kept["dsl_init"] in TOPOLOGIES_OF_SHAPES:
        given["dsl_init"] = kept["dsl_init"]  # budgets follow from it, whatever the model's file says by now
    else:  # the topology is in the file
        given |= {"dsl_init": "random", "dsl_init_values": "model"}
    given["dsl_split"] = kept.get("dsl_split")
    given["dsl_width"] = kept["dsl_width"]  # what was chosen where "auto" was given
    given = {key: value for key, value in given.items() if key not in ("model", "dataset")} | settings
    with no_flags():
        return _LoadedConfig(
            model_class or name,
            str(kept["dataset"]),
            None,
            given,
            evaluates=False,
            from_files=of_file.keys() - state["given"].keys() - settings.keys(),
        )
