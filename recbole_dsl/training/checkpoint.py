"""Checkpoints of sparse training: packed tensors and plain values, read without running code."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .. import recbole_names
from ..errors import CheckpointError, DataError, NumberError
from ..packed.layout import layout_of
from ..plain import PLAIN, plain
from ..tensor_file import CHECKPOINT, read_tensor_file, read_tree, write_tensor_file
from .adaptations import clear_model_caches, other_state


def plain_or_tensor(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a model's other parameters that are tensors, plain values, or made of such.

    Whole submodules among them are left out: the state dict holds their weights already.
    """
    return {key: value for key, value in values.items() if _storable(value)}


def _storable(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(type(k) in PLAIN for k in value) and all(map(_storable, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_storable, value))
    return type(value) in PLAIN or (isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter))


def checkpoint_state(trainer: Any, epoch: int) -> dict[str, Any]:
    """What a checkpoint of a sparse trainer after ``epoch`` holds.

    ``layout`` says which entries of ``state_dict`` belong to sparse groups, so that the dense tensors
    can be had without the model.
    """
    model = trainer.model
    clear_model_caches(model)
    return {
        "config": plain(trainer.config.final_config_dict),
        "given": trainer.config.given,
        "model_class": recbole_names.full_name(trainer.config.model_class),
        "tokens": trainer.tokens,
        "epoch": epoch,
        "cur_step": trainer.cur_step,
        "best_valid_score": float(trainer.best_valid_score),
        "state_dict": model.state_dict(),
        "layout": layout_of(model),
        "other_parameter": plain_or_tensor(other_state(model)),
        "optimizer": trainer.optimizer.state_dict(),
    }


def tokens_of(dataset: Any) -> dict[str, str]:
    """SHA-256 of the tokens of users, items and other fields, each in the order of its rows."""
    return {
        field: hashlib.sha256("\0".join(map(str, tokens)).encode("utf-8", "surrogatepass")).hexdigest()
        for field, tokens in sorted(dataset.field2id_token.items())
    }


def refuse_other_tokens(
    file: str | os.PathLike[str], theirs: Mapping[str, str], ours: Mapping[str, str]
) -> None:
    """Raise DataError if rows of a checkpoint's tables stand for other tokens now, of fields that both have."""
    for field in sorted(theirs.keys() & ours.keys()):
        if theirs[field] != ours[field]:
            raise DataError(
                f"'{os.fspath(file)}' was trained on other values of {field}, or the same in another order, so "
                "its weights would be given to the wrong ones: allowed is the dataset as it was."
            )


def write_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` whole or not at all: a broken write leaves the old file.

    Raises:
        CheckpointError: the disk is full, or the file cannot be written for another reason.
    """
    try:
        write_tensor_file(path, *CHECKPOINT, state)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: str | os.PathLike[str], error: OSError) -> CheckpointError:
    """What to raise when the system refuses to write a checkpoint."""
    return CheckpointError(
        f"The checkpoint '{os.fspath(path)}' cannot be written ({error.strerror or error}); what was there "
        "before is as it was. Allowed is a folder with room for it (set checkpoint_dir)."
    )


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What :func:`write_checkpoint` wrote, checked; tensors are on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or no checkpoint of this package.
    """
    state: dict[str, Any] = read_tensor_file(path, *CHECKPOINT)
    return state


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The same with None for tensors, from the file's header alone, without looking at the checksum."""
    state: dict[str, Any] = read_tree(path, *CHECKPOINT)
    return state


def load_weights(model: Any, state: Mapping[str, Any]) -> None:
    """Put a checkpoint's weights, topology and other parameters into the model it was written from.

    Raises:
        CheckpointError: it is of another model.
    """
    try:
        model.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(
            f"The checkpoint is not of this model and budget ({' '.join(str(error).split())}); allowed is one "
            "that was written with the same settings."
        ) from None
    clear_model_caches(model)  # of the weights before; a file's own are among its other parameters
    others = state.get("other_parameter")
    if others:  # to the model's device, as RecBole has it
        device = next(model.parameters()).device
        others = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in others.items()}
    model.load_other_parameter(others)


def refuse_spoilt_weights(model: nn.Module, place: str, last_good: str) -> None:
    """Raise NumberError if a weight is not finite: no good checkpoint is replaced by a spoilt one."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter.detach()).all()):
            raise NumberError(
                f"{name} holds NaN or infinite weights before {place}; {last_good}. Allowed are finite "
                "numbers: a lower learning_rate or clip_grad_norm may help."
            )
