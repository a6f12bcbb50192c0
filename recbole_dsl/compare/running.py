"""Runs the cells of a comparison, each in a process of its own, and goes on where it was stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from ..errors import ConfigError
from ..launching import GRACE
from .grid import Cell
from .methods import Method
from .store import Store

_HOME: Final = str(Path(__file__).resolve().parents[2])
"""Where this package is, which need not be installed."""


@dataclass(frozen=True)
class Job:
    """A process to start: a cell, and what its process is told.

    ``needs``: the dense cell whose model it starts from; ``counts``: False for a dense model that only others
    need; ``keep``: whether the dense model is kept for others.
    """

    cell: Cell
    method: str
    settings: Mapping[str, Any]
    needs: Cell | None = None
    counts: bool = True
    keep: bool = False


class Terminated(KeyboardInterrupt):
    """SIGTERM, which job schedulers send, stops a comparison as Ctrl-C does."""

    exit_status = 128 + signal.SIGTERM


@contextlib.contextmanager
def _terms_raised() -> Iterator[None]:
    """SIGTERM raises :class:`Terminated`; Python delivers signals to the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class Outcome:
    """How many cells have failed and were cancelled in a run."""

    failed: int = 0
    cancelled: int = 0


def jobs_of(
    cells: Sequence[Cell], methods: Mapping[str, tuple[str, Method]], settings: Mapping[Cell, Any], store: Store
) -> list[Job]:
    """What is left to do, dense models that others need first.

    Args:
        cells: all cells.
        methods: by name, what was asked for (a name or a path) and the method.
        settings: of every cell, and of the dense cells that others need.
    """
    left = dict.fromkeys(cell for cell in cells if not store.is_finished(cell))
    needs = {cell: cell.dense for cell in left if methods[cell.method][1].after == "dense"}
    first = [
        Job(cell, "dense", settings[cell], counts=cell in left, keep=True)
        for cell in dict.fromkeys(needs.values())
        if cell in left or not store.has_dense(cell)
    ]
    for job in first:
        left.pop(job.cell, None)
    return first + [Job(cell, methods[cell.method][0], settings[cell], needs.get(cell)) for cell in left]


def _cores() -> int:
    """Cores this process may use: fewer than there are under ``taskset`` or in a container with a set of cores.

    A container's share of their time (``docker --cpus``) is not seen.
    """
    allowed = getattr(os, "sched_getaffinity", None)  # on Linux
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


class Runner:
    """Runs jobs, ``at_once`` at a time.

    Args:
        store: where results go.
        at_once: processes; each has its share of the cores as threads.
    """

    def __init__(self, store: Store, at_once: int) -> None:
        self.store, self.at_once = store, at_once
        self.threads = max(1, _cores() // at_once)
        self.running: dict[subprocess.Popen[bytes], tuple[Job, float]] = {}
        self.outcome = Outcome()

    def run(self, jobs: Sequence[Job], total: int) -> Outcome:
        """Run all; ``total``: cells of the comparison, those that are finished included.

        What runs when it is interrupted or terminated is told to save, stopped and noted as cancelled.
        """
        waiting = list(jobs)
        at_work = {job.cell for job in jobs}
        done = total - sum(job.counts for job in jobs)
        bar_of_cells = tqdm(total=total, initial=done, unit="cell", smoothing=0, dynamic_ncols=True)
        with _terms_raised(), bar_of_cells as bar:
            try:
                while waiting or self.running:
                    while len(self.running) < self.at_once and (job := self._ready(waiting, at_work)):
                        waiting.remove(job)
                        self._start(job)
                        bar.set_postfix_str(", ".join(job.cell.key for job, _ in self.running.values()))
                    time.sleep(0.1)
                    for job in self._ended():
                        at_work.discard(job.cell)
                        bar.update(int(job.counts))
                        waiting = self._without_orphans(job, waiting, bar)
            except BaseException as stop:
                self._stop(stop)
                raise
        return self.outcome

    def _ready(self, waiting: Sequence[Job], at_work: set[Cell]) -> Job | None:
        return next((job for job in waiting if job.needs not in at_work), None)

    def _start(self, job: Job) -> None:
        self.store.forget_notes(job.cell)
        request = {
            "cell": job.cell.to_dict(),
            "method": job.method,
            "settings": dict(job.settings),
            "store": str(self.store.folder),
            "threads": self.threads,
            "counts": job.counts,
            "keep": job.keep,
        }
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
        path_of_code = os.pathsep.join([_HOME, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, **dict.fromkeys(names, str(self.threads)), "PYTHONPATH": path_of_code}
        with self.store.path("logs", job.cell, ".log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "recbole_dsl.compare.cell"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the comparison, which tells its cells
            )
        self.running[process] = job, time.monotonic()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already, which is seen later
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()

    def _ended(self) -> list[Job]:
        """Jobs whose process has ended, counted by how."""
        ended = []
        for process, (job, _) in list(self.running.items()):
            if process.poll() is None:
                continue
            self._forget(process)
            ended.append(job)
            if self.store.is_finished(job.cell) if job.counts else self.store.has_dense(job.cell):
                continue
            self.outcome.failed += 1
            if not self.store.path("failed", job.cell).is_file():
                self.store.note("failed", job.cell, _how_it_ended(process.returncode))
        return ended

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        del self.running[process]
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()

    def _without_orphans(self, job: Job, waiting: list[Job], bar: Any) -> list[Job]:
        """What can still be run after ``job`` has ended; cells that need its model are cancelled without it."""
        if not job.keep or self.store.has_dense(job.cell):
            return waiting
        orphans = [other for other in waiting if other.needs == job.cell]
        for orphan in orphans:
            self.store.note(
                "cancelled", orphan.cell, f"The dense model {job.cell.key} that it starts from failed."
            )
            self.outcome.cancelled += 1
            bar.update(1)
        return [other for other in waiting if other not in orphans]

    def _stop(self, stop: BaseException) -> None:
        for process in self.running:
            process.terminate()
        for process, (job, started) in list(self.running.items()):
            try:
                process.wait(timeout=GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._forget(process)
            if job.counts and not self.store.is_finished(job.cell):
                after = time.monotonic() - started
                why = "interrupted" if isinstance(stop, KeyboardInterrupt) else type(stop).__name__
                self.store.note(
                    "cancelled", job.cell, f"The comparison was stopped ({why}) after {after:.0f} s."
                )
                self.outcome.cancelled += 1


def refuse_unfinished(outcome: Outcome, store: Store, what: str) -> None:
    """Raise ConfigError if not all ``what`` (cells or trials) are finished after a run."""
    if outcome.failed or outcome.cancelled:
        raise ConfigError(
            f"{outcome.failed} {what} failed and {outcome.cancelled} were cancelled; '{store.folder}/failed' "
            "and 'cancelled' say why; allowed is to call the command again, which goes on with them."
        )


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"The process of the cell was ended by signal {-code}; out of memory, perhaps."
    return f"The process of the cell ended with status {code} and no result; its log may say why."
