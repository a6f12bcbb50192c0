"""The process of one cell: ``python -m recbole_dsl.compare.cell``, asked by a line of standard input.

Ends when its standard input does, so that a comparison that is killed leaves nothing running.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import DSLError, on_one_line
from ..results import RunResult
from .grid import Cell
from .methods import read_method
from .store import Store


def main(request: dict[str, Any]) -> int:
    """Run the cell; its result, or what went wrong, is in its file afterwards."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.filterwarnings("ignore", module=r"recbole\.")
    cell, store = Cell(**request["cell"]), Store(Path(request["store"]))
    try:
        _run(cell, store, request)
    except DSLError as error:
        store.note("failed", cell, str(error))
        return 1
    except Exception as error:
        store.note("failed", cell, on_one_line(error), traceback=traceback.format_exc())
        return 1
    except KeyboardInterrupt as stop:
        print(stop)
        return int(getattr(stop, "exit_status", 130))
    store.forget_run(cell)
    return 0


def _run(cell: Cell, store: Store, request: dict[str, Any]) -> None:
    import torch

    from .procedures import PROCEDURES, Task, with_dense

    torch.set_num_threads(request["threads"])
    method = read_method(request["method"])
    kept, figures = store.path("dense", cell.dense, ".pth"), store.path("dense", cell.dense)
    with tempfile.TemporaryDirectory(dir=store.folder / "temporary") as folder:
        task = Task(
            model=cell.model,
            dataset=cell.dataset,
            method=method,
            density=cell.density,
            seed=cell.seed,
            files=(store.folder / "settings.yaml",),
            settings=request["settings"],
            folder=Path(folder),
            kept=store.run_folder(cell),
            dense=kept if method.after == "dense" or (method.name == "dense" and request["keep"]) else None,
        )
        if method.name == "dense" and cell.trial is None and kept.is_file() and figures.is_file():
            result = RunResult.from_json(figures.read_text(encoding="utf-8"))
        else:
            result = PROCEDURES[method.procedure](task)
    if method.after == "dense":
        result = with_dense(result, RunResult.from_json(figures.read_text(encoding="utf-8")))
    if method.name == "dense" and request["keep"]:
        result.save(figures)
    if cell.trial is not None:  # settings are chosen on validation, and nothing else can be looked at
        result = replace(result, test_result={}, analysis={})
    if request["counts"]:
        store.keep(cell, result)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.stdin.readline())))
