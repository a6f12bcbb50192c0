"""Short runs on ml-100k that several test files share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from recbole_dsl.config import no_flags
from recbole_dsl.experiment import run_recbole_dsl
from recbole_dsl.results import RunResult

QUIET: dict[str, Any] = {"state": "ERROR", "show_progress": False, "seed": 2020}


def sparse_run(model: str | type, folder: Path, saved: bool = True, **settings: Any) -> RunResult:
    """Our run of ``model`` on ml-100k, quiet, with checkpoints in ``folder``."""
    settings = {**QUIET, "checkpoint_dir": str(folder), **settings}
    with no_flags():
        return run_recbole_dsl(model, "ml-100k", config_dict=settings, saved=saved)


def command_line(*flags: str, cwd: Path) -> Any:
    """``python run_recbole_dsl.py`` with flags, in its own process and working directory."""
    import os
    import subprocess

    script = Path(__file__).resolve().parents[1] / "run_recbole_dsl.py"
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(script), *flags],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
