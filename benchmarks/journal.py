"""Benchmarks of many cells: each in a process of its own, results in a JSON-lines file that can be resumed.

A cell is a dictionary that a script knows how to measure. A line of the file holds the cell, the round,
what it ran on and the result; a cell that has a line for this round, commit and device is not run again.
Cells that need the same data may share a process that loads them and forks for each cell.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
Cell = dict[str, Any]


@dataclass(frozen=True)
class Journal:
    """A file of finished cells, one JSON object a line."""

    path: Path

    def lines(self) -> list[dict[str, Any]]:
        """All finished lines; one that a killed run left unfinished at the end is no line."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        return [json.loads(line) for line in whole.splitlines()]

    def append(self, line: dict[str, Any]) -> None:
        """Add a line, in place of an unfinished one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(line).encode() + b"\n")

    def keys(self) -> set[str]:
        """The keys of all lines."""
        return {key_of(line["cell"], line["round"], line["commit"], line["device"]) for line in self.lines()}


def key_of(cell: Cell, turn: int, commit: str, device: str) -> str:
    """What must be equal for a measurement to be the same one."""
    return json.dumps([cell, turn, commit, device], sort_keys=True)


@dataclass(frozen=True)
class Run:
    """How cells are run: by ``script --cells JSON --out FILE`` and ``options``, with ``threads`` threads.

    The script writes a JSON line for each of its cells, in order. ``commit`` and ``device`` (a processor's
    or a GPU's name) go into every line of the journal.
    """

    script: Path
    options: Sequence[str]
    threads: int
    commit: str
    device: str

    def measure(self, cells: Sequence[Cell], turn: int) -> list[dict[str, Any]]:
        """The lines that a process of its own writes about cells, those that failed left out."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "results.jsonl"
            number = str(self.threads)
            threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), number)
            path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
            environment = {**os.environ, **threads, "PYTHONPATH": path}
            told = ["--cells", json.dumps(cells), "--out", str(out), "--threads", number, "--round", str(turn)]
            # RecBole writes logs and checkpoints into the working directory.
            command = [sys.executable, "-W", "ignore", str(self.script), *told, *self.options]
            subprocess.run(command, cwd=folder, env=environment, check=False)
            return Journal(out).lines()

    def in_turn(self, groups: Sequence[Sequence[Cell]], rounds: int, journal: Journal) -> list[Cell]:
        """Run A B C … once for every round, what is there already left out; returns what failed.

        A group of cells shares a process of ``script``. Neighbours are measured one after the other, so
        that the variants of one model share whatever the machine is doing, and every round comes back
        to all of them.
        """
        there = journal.keys()
        missing = [
            ([c for c in group if key_of(c, turn, self.commit, self.device) not in there], turn)
            for turn in range(rounds)
            for group in groups
        ]
        failed = []
        for cells, turn in _with_time_left([(cells, turn) for cells, turn in missing if cells]):
            lines = self.measure(cells, turn)
            for line in lines:
                place = {"round": turn, "commit": self.commit, "device": self.device}
                journal.append({**line, **place})
            done = [line["cell"] for line in lines]
            failed += [cell for cell in cells if cell not in done]
        return failed


def _with_time_left(missing: Sequence[tuple[list[Cell], int]]) -> Iterator[tuple[list[Cell], int]]:
    """The same groups, each announced with the minutes that the rest will take at the pace so far."""
    started, done, total = perf_counter(), 0, sum(len(cells) for cells, _ in missing)
    for cells, turn in missing:
        left = (perf_counter() - started) / done * (total - done) / 60 if done else 0.0
        names = "; ".join(" ".join(map(str, cell.values())) for cell in cells)
        print(f"[{done}/{total}{f', {left:.0f} min left' if done else ''}] round {turn}: {names}", flush=True)
        yield cells, turn
        done += len(cells)


def my_turn(lock: Path | None) -> AbstractContextManager[Any]:
    """Held while a cell is measured, so that processes that share ``lock`` load at once and measure in turn."""
    return nullcontext() if lock is None else FileLock(lock)


def each_in_a_fork(cells: Sequence[Cell], measure: Callable[[Cell], dict[str, Any]], out: Path) -> None:
    """Write the line of each cell, measured in a fork of this process, which shares what is loaded."""
    for cell in cells:
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            continue
        try:
            Journal(out).append(measure(cell))
        except BaseException:  # a child must never go on with its parent's work
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
