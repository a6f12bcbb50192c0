"""Which checkpoint a run goes on from, and whether its settings and data are those of this run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..errors import CheckpointError, ConfigError
from .checkpoint import read_description

LAST: Final = "-last.dsl"
"""How the name of a file ends that a run can go on from; without ``-last`` it holds the best epoch."""

HARMLESS: Final = frozenset(
    {
        *("epochs", "stopping_step", "save_step", "pretrain_epochs"),
        *("state", "show_progress", "verbose", "log_wandb", "wandb_project", "loss_decimal_place"),
        *("checkpoint_dir", "data_path", "dsl_result", "dsl_resume", "dsl_save_every", "config_files"),
        *("gpu_id", "use_gpu", "device", "worker", "dsl_kernels"),
        *("nproc", "world_size", "ip", "port", "offset", "local_rank", "single_spec"),
        *("save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path"),
    }
)
"""Settings that may be others than in the run that is taken up."""


def find(wish: bool | str, settings: Mapping[str, Any]) -> Path | None:
    """The file to go on from; None to start from the beginning.

    Args:
        wish: ``dsl_resume``: a file, or True for the newest one of this run in ``checkpoint_dir``.
        settings: plain settings of this run.

    Raises:
        CheckpointError: the file cannot be read, or holds only weights.
        ConfigError: it was written with other settings.
    """
    if wish is False:
        return None
    if isinstance(wish, str):
        refuse_changes(Path(wish), _identity(Path(wish))["settings"], settings)
        return Path(wish)
    changed: Path | None = None
    for file, run in _runs_like(settings):
        theirs = run["identity"]["settings"]
        if not _differences(theirs, settings):
            return file
        if changed is None and run["position"]["finished"] is None:
            changed = file
    if changed is not None:
        refuse_changes(changed, _identity(changed)["settings"], settings)
    getLogger().warning(
        f"There is nothing to resume in '{settings['checkpoint_dir']}' for these settings: training starts "
        "from the beginning."
    )
    return None


def _runs_like(settings: Mapping[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Files of runs with the same model, dataset and seed, and what they say of their run; the newest first."""
    folder = Path(str(settings["checkpoint_dir"]))
    files = [f for f in folder.glob(f"*{LAST}") if f.name.startswith(f"{settings['model']}-")]
    for file in sorted(files, key=lambda f: f.stat().st_mtime_ns, reverse=True):
        try:
            run = read_description(file)["run"]
        except (CheckpointError, KeyError, TypeError) as error:
            getLogger().warning(f"{error} It is passed over.")
            continue
        theirs = run["identity"]["settings"]
        if all(theirs.get(key) == settings.get(key) for key in ("model", "dataset", "seed")):
            yield file, run


def _identity(file: Path) -> dict[str, Any]:
    description = read_description(file)
    if not isinstance(description.get("run"), dict):
        raise CheckpointError(
            f"'{file}' holds the weights of the best epoch only; allowed is a file whose name ends in '{LAST}'."
        )
    identity: dict[str, Any] = description["run"]["identity"]
    return identity


def refuse_changes(file: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise ConfigError if settings differ that a run must keep."""
    different = _differences(theirs, ours)
    if different:
        told = "; ".join(f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in different)
        raise ConfigError(
            f"'{file}' cannot be resumed with other settings ({told}); allowed to differ are "
            "epochs, stopping_step, logging, places of files, the device and the number of processes."
        )


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    keys = sorted((theirs.keys() | ours.keys()) - HARMLESS)
    return [key for key in keys if theirs.get(key) != ours.get(key)]


def fingerprint(train_data: Any) -> str:
    """SHA-256 of the interactions a loader trains on, so that changed data are found out."""
    digest = hashlib.sha256()
    table = train_data._dataset.inter_feat
    for name in sorted(table.columns):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(table[name].cpu().numpy()))
    return digest.hexdigest()


def refuse_other_data(file: Path, theirs: str, ours: str) -> None:
    """Raise ConfigError if a run was trained on other interactions."""
    if theirs != ours:
        raise ConfigError(
            f"'{file}' was trained on other interactions than these; allowed is the same dataset with the "
            "same split."
        )
