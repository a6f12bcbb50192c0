"""What a run returns: one RunResult, as versioned JSON (documented in docs/results.md)."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from .files import write_text_whole
from .plain import finite

SCHEMA = 2

PRIVATE_SETTINGS = frozenset(
    {
        "data_path",
        "checkpoint_dir",
        "log_root",
        "gpu_id",
        "device",
        "pre_model_path",
        "dsl_start_from",
        "dsl_result",
        "dsl_resume",
    }
)
"""Settings that say where things are on the machine that trained."""


@dataclass(frozen=True)
class RunResult:
    """Result of one training run, schema 2; every field is JSON-able. See docs/results.md."""

    schema: int
    model: str
    dataset: str
    method: str
    seed: int
    best_valid_result: dict[str, float]
    test_result: dict[str, float]
    epochs_run: int
    train_loss: list[float]
    valid_results: list[dict[str, float]]
    updates: list[dict[str, Any]]
    sparsity: dict[str, Any]
    costs: dict[str, Any]
    environment: dict[str, Any]
    config: dict[str, Any]
    analysis: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The result as JSON text; numbers that are not finite become null."""
        return json.dumps(finite(asdict(self), lambda _: None), indent=2, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> RunResult:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: the text is of another schema.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise ValueError(f"it is no RunResult of schema {SCHEMA}")
        return cls(**values)

    def without_places(self) -> RunResult:
        """The same without the settings that say where things are on this machine."""
        config = {key: value for key, value in self.config.items() if key not in PRIVATE_SETTINGS}
        return replace(self, config=config)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON to ``path``, whole or not at all, creating its folders."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(path, self.to_json() + "\n")


def recbole_version() -> str | None:
    """Version of the installed RecBole, None without one."""
    try:
        return metadata.version("recbole")
    except metadata.PackageNotFoundError:
        return None


_HOME = Path(__file__).resolve().parents[1]


def git(*arguments: str) -> str:
    """What git says of the checkout that this package is in; nothing without git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=_HOME, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


@functools.cache
def commit() -> str | None:
    """The commit of the checkout that this package runs from, ``-dirty`` if anything but results has changed.

    None where it is installed without one.
    """
    name = git("describe", "--always", "--abbrev=12") if (_HOME / ".git").exists() else ""
    dirty = name and git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return name + ("-dirty" if dirty else "") if name else None


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def rounded(result: Mapping[str, float] | None, decimals: int) -> dict[str, float]:
    """What an evaluation has returned, as plain numbers with RecBole's ``metric_decimal_place``.

    GAUC is float32, whose rounded values have more decimals as floats.
    """
    return {name: round(float(value), decimals) for name, value in (result or {}).items()}


def environment() -> dict[str, Any]:
    """Versions and machine of this process."""
    import numpy
    import pandas
    import scipy
    import torch

    from . import __version__

    return {
        "recbole_dsl": __version__,
        "recbole": recbole_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "pandas": pandas.__version__,
        "commit": commit(),
        "processor": processor(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
