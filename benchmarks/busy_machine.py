"""Seconds of an epoch on a machine of one's own, and beside a process that keeps a core busy.

    python benchmarks/busy_machine.py [--threads 2] [--out FILE.json]

LightGCN on ml-100k from the command line, with the rounds that threads spin while they wait for each other
(``GOMP_SPINCOUNT``): those of the command line, and GNU OpenMP's own where nothing is set. Beside others, one
busy process for each thread but one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.provenance import provenance  # noqa: E402
from recbole_dsl.cli import SPINS  # noqa: E402

OWN = 300_000
"""What GNU OpenMP takes where nothing is set."""

EPOCHS = 6


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute without end."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def epoch_seconds(spins: int, threads: int) -> float:
    """The mean over a run's epochs."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": str(spins)}
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            "--model=LightGCN",
            f"--epochs={EPOCHS}",
            "--eval_step=0",
            "--state=ERROR",
            "--show_progress=False",
        ]
        command = [sys.executable, str(ROOT / "run_recbole_dsl.py"), *flags, "--dsl_result=result.json"]
        subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True)
        told = json.loads(Path(folder, "result.json").read_text(encoding="utf-8"))
    return float(told["costs"]["seconds_per_epoch"])


def main() -> None:
    """Measure, print, write JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    seconds: dict[tuple[int, int], list[float]] = {}
    for _ in range(chosen.rounds):
        for others in (0, chosen.threads - 1):
            for spins in (OWN, int(SPINS)):
                with busy(others):
                    seconds.setdefault((others, spins), []).append(epoch_seconds(spins, chosen.threads))
    rows: list[dict[str, Any]] = [
        {"spins": spins, "busy_processes": others, "seconds_per_epoch": round(statistics.median(mine), 3)}
        for (others, spins), mine in seconds.items()
    ]
    for row in rows:
        print(row)
    if chosen.out:
        setting = {"threads": chosen.threads, "rounds": chosen.rounds, "epochs": EPOCHS}
        result = {**provenance(), "seed": 2020, "setting": setting, "rows": rows}
        chosen.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
