"""Training that starts from the weights of a trained model of the same class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..compat import read_dense_checkpoint
from ..errors import ConfigError
from .adaptations import clear_model_caches


def check_start(path: str) -> None:
    """Refuse a file that is not there, before any data are loaded.

    Raises:
        ConfigError: there is no such file.
    """
    if not Path(path).is_file():
        raise ConfigError(
            f"dsl_start_from={path!r} is no file; allowed is a checkpoint of RecBole's or of ours."
        )


def start_from(model: Any, path: str) -> None:
    """Give a dense model the weights and other parameters of a checkpoint.

    Raises:
        ConfigError: it is of another model, or its tensors have other names or shapes.
        DSLError: it cannot be read, or holds more than a checkpoint does.
    """
    state = read_dense_checkpoint(path)
    theirs = state["config"]["model"] if state.get("config") is not None else None
    if theirs is not None and str(theirs) != type(model).__name__:
        raise ConfigError(
            f"dsl_start_from={path!r} is of model {theirs!r}; allowed is a checkpoint of "
            f"{type(model).__name__}."
        )
    own, given = model.state_dict(), state["state_dict"]
    for name in sorted(own.keys() | given.keys()):
        there, here = (_shape(tensors.get(name)) for tensors in (given, own))
        if there != here:
            raise ConfigError(
                f"dsl_start_from={path!r} does not fit the model: {name} is {there} there and {here} here; "
                "allowed is a checkpoint that was trained with the same sizes on the same dataset."
            )
    take_weights(model, state)


def take_weights(model: Any, state: Mapping[str, Any]) -> None:
    """Load what a checkpoint of the same model holds, but what the model computes of its weights."""
    model.load_state_dict(state["state_dict"])
    model.load_other_parameter(state.get("other_parameter"))
    compute_again(model)


@torch.no_grad()
def compute_again(model: Any) -> None:
    """Forget what a dense model has computed of other weights: cached vectors and KGAT's attention.

    RecBole does not save the latter.
    """
    clear_model_caches(model)
    if hasattr(model, "update_attentive_A"):
        model.update_attentive_A()


def _shape(tensor: Any) -> str:
    return "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
