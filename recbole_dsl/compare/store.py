"""The folder of a comparison: its settings, and a file for every cell, finished, failed or cancelled.

::

    grid.json            models, datasets, methods, densities, seeds and the settings of all cells
    settings.yaml        the contents of the config files
    cells/KEY.json       RunResult of a finished cell; never written again
    failed/KEY.json      a cell that failed, with its error
    cancelled/KEY.json   a cell that was stopped, or never begun because its dense model failed
    dense/KEY.pth, .json RecBole's dense models that methods start from; can be deleted, and is made anew
    logs/KEY.log         what a cell has printed
    runs/KEY/            checkpoints of a sparse cell that is trained, or was stopped and goes on from them
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from filelock import FileLock, Timeout

from ..errors import ConfigError, on_one_line
from ..files import write_text_whole
from ..plain import plain
from ..results import RunResult
from ..settings import literal
from .grid import Cell, refuse_same_names

FOLDERS: Final = ("cells", "failed", "cancelled", "dense", "logs", "temporary")

_WRITTEN: Final = {
    *("settings.yaml", "table.md", "table.csv", "table.tex", "report.html", "figures", "runs"),
    *("trials.csv", "tuned.yaml"),
}
"""What else a comparison, its report and its tuning write or delete beside ``grid.json``."""

LISTS: Final = ("models", "datasets", "methods", "densities", "seeds")
"""The parts of a grid to which later calls may add."""

_ALLOWED: Final = "allowed is the file that 'recbole-dsl compare' has written, or another --name"


class Store:
    """The files of one comparison below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / ".lock")

    def open(self, grid: dict[str, Any], files: dict[str, Any]) -> None:
        """Create the folder, or take it up; one process at a time.

        Args:
            grid: what is asked for; ``settings`` and ``tuned`` must be those of an earlier call.
            files: the contents of the config files, merged.

        Raises:
            ConfigError: another process is at work there, or it holds a comparison with other settings.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"'{self.folder}' cannot be created ({error.strerror}); allowed is another --name or --results."
            ) from None
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"Another 'recbole-dsl compare' is at work in '{self.folder}'; allowed is another --name."
            ) from None
        grid = {**grid, "settings": {**files, **grid["settings"]}}
        path = self.folder / "grid.json"
        if path.is_file():
            grid = _extended(read_grid(self.folder), grid, self.folder)
        else:
            self._refuse_foreign()
        for name in FOLDERS:
            (self.folder / name).mkdir(exist_ok=True)
        self._forget_runs_that_ended()
        for left in (self.folder / "temporary").iterdir():  # of cells that were killed
            shutil.rmtree(left, ignore_errors=True)
        self._write(path, grid)
        write_text_whole(self.folder / "settings.yaml", yaml.safe_dump(files, sort_keys=True))

    def _refuse_foreign(self) -> None:
        """Raise ConfigError if there are files in the places of ours, and no ``grid.json`` that says whose."""
        for found in self.folder.iterdir():
            if found.name in _WRITTEN:
                break
            if found.name in FOLDERS and found.is_dir() and (inside := next(found.iterdir(), None)) is not None:
                found = inside
                break
        else:
            return
        raise ConfigError(
            f"'{self.folder}' is no comparison and holds '{found.relative_to(self.folder)}', which would be "
            "overwritten or deleted; allowed is another --name, or an empty folder."
        )

    def close(self) -> None:
        """Let another process at work."""
        self._lock.release()

    def path(self, state: str, cell: Cell, suffix: str = ".json") -> Path:
        """The file of a cell in one of the folders."""
        return self.folder / state / f"{cell.key}{suffix}"

    def run_folder(self, cell: Cell) -> Path:
        """Where a cell keeps the checkpoints of its training until it has ended."""
        return self.path("runs", cell, "")

    def forget_run(self, cell: Cell) -> None:
        """Delete them."""
        shutil.rmtree(self.run_folder(cell), ignore_errors=True)

    def _forget_runs_that_ended(self) -> None:
        """A process that died after its result was written could not delete its checkpoints."""
        for run in (self.folder / "runs").glob("*"):
            if (self.folder / "cells" / f"{run.name}.json").is_file():
                shutil.rmtree(run, ignore_errors=True)

    def is_finished(self, cell: Cell) -> bool:
        """Whether the cell has its result."""
        return self.path("cells", cell).is_file()

    def has_dense(self, cell: Cell) -> bool:
        """Whether the dense model of a cell is there for others, with its figures, which are written last."""
        return self.path("dense", cell, ".pth").is_file() and self.path("dense", cell).is_file()

    def note(self, state: str, cell: Cell, error: str, **more: Any) -> None:
        """Write down that a cell failed or was cancelled."""
        self._write(self.path(state, cell), {"cell": cell.to_dict(), "error": error, **more})

    def keep(self, cell: Cell, result: RunResult) -> None:
        """Write a result, and forget that the cell failed or was cancelled before."""
        result.save(self.path("cells", cell))
        self.forget_notes(cell)

    def forget_notes(self, cell: Cell) -> None:
        """Forget that a cell failed or was cancelled, as it is run again."""
        for state in ("failed", "cancelled"):
            self.path(state, cell).unlink(missing_ok=True)

    @staticmethod
    def _write(path: Path, content: dict[str, Any]) -> None:
        write_text_whole(path, json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n")


def read_grid(folder: Path) -> dict[str, Any]:
    """What was asked for, with the settings of all cells.

    Raises:
        ConfigError: ``grid.json`` cannot be read, or was not written by a comparison.
    """
    path = folder / "grid.json"
    try:
        grid = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{path}' cannot be read ({on_one_line(error)}); {_ALLOWED}.") from None
    if not isinstance(grid, dict) or not {*LISTS, "settings", "tuned"} <= grid.keys():
        raise ConfigError(f"'{path}' lacks what was compared; {_ALLOWED}.")
    return grid


def _extended(old: dict[str, Any], new: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A grid of both, if both have the same settings."""
    new = json.loads(json.dumps(plain(new)))
    if old["tuned"] != new["tuned"]:
        raise ConfigError(
            f"'{folder}' was made with other tuned settings, which its grid.json has; allowed are the same "
            "ones for all cells, or another --name."
        )
    files = {**new["method_files"], **old.get("method_files", {})}
    # Cells are named by methods, wherever their files were.
    contents = {Path(file).stem: content for file, content in old.get("method_files", {}).items()}
    for file, content in new["method_files"].items():
        if contents.get(Path(file).stem, content) != content:
            raise ConfigError(
                f"'{folder}' was made with another content of '{file}'; allowed is the same one for all cells, "
                "another name of the file, or another --name."
            )
    before, now = old["settings"], new["settings"]
    # A flag is text, and a file has what it means.
    changed = sorted(k for k in before.keys() | now.keys() if literal(before.get(k)) != literal(now.get(k)))
    if changed:
        key = changed[0]
        raise ConfigError(
            f"'{folder}' was made with settings {key}={before.get(key)!r}, and now it is {now.get(key)!r}; "
            "allowed are the same settings for all cells, or another --name."
        )
    merged = {part: old[part] + [x for x in new[part] if x not in old[part]] for part in LISTS}
    refuse_same_names(merged["models"])
    return {**new, **merged, "method_files": files, "methods": _once_each(merged["methods"])}


def _once_each(methods: Sequence[str]) -> list[str]:
    """Without further paths of files that have the same name."""
    return list({Path(name).stem: name for name in reversed(methods)}.values())[::-1]
