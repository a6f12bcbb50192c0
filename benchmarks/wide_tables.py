"""A LightGCN's training step by the columns of its tables: propagated whole, and by columns.

    python benchmarks/wide_tables.py --data FOLDER --dataset citeulike-t --out FILE.json

FOLDER has the dataset; without it, it is ml-100k, which RecBole brings along. All sparse models have the same
number of live weights, a tenth of the dense model's of 64 columns, at random positions. One thread; every
variant in a process of its own, some rounds in turn, so that a machine whose speed drifts is unfair to none.

*Seconds*: forward, backward and optimizer, outside of growth windows; the median of all rounds. *Bytes*: by how
much the process grows at most during such steps, over what it holds between them; in processes of their own,
in which the system gets freed memory back at once. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.baseline import recbole_trainer  # noqa: E402
from benchmarks.provenance import provenance  # noqa: E402
from benchmarks.stopwatch import peak_of_process, settle_memory  # noqa: E402
from recbole_dsl.config import RecBoleDSLConfig  # noqa: E402
from recbole_dsl.experiment import build_model, load_data  # noqa: E402
from recbole_dsl.training.trainer import sparse_trainer  # noqa: E402

COLUMNS = (128, 256, 512, 1024)
DENSITY = 0.1
STEPS = 12


def settings(options: argparse.Namespace, **dsl: Any) -> dict[str, Any]:
    """RecBole's settings and ``dsl_`` ones."""
    place = {} if options.data is None else {"data_path": str(options.data)}
    return {
        **place, "state": "ERROR", "show_progress": False, "seed": 2020, "user_inter_num_interval": "[5,inf)",
        "load_col": {"inter": ["user_id", "item_id"]}, **{f"dsl_{key}": value for key, value in dsl.items()},
    }  # fmt: skip


def variants() -> list[str]:
    """RecBole's dense model, then whole tables and columns of every width."""
    return ["recbole", *(f"{way}-{columns}" for columns in COLUMNS for way in ("whole", "columns"))]


def trainer_of(variant: str, options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """A trainer, its batches, and what its steps are made within."""
    if variant == "recbole":
        trainer, data, *_ = recbole_trainer("LightGCN", options.dataset, settings(options))
        return trainer, data, contextlib.nullcontext()
    way, columns = variant.split("-")
    wanted = settings(options, density=DENSITY, method="static", width=int(columns))
    config = RecBoleDSLConfig("LightGCN", options.dataset, config_dict=wanted)
    _, data, *_ = load_data(config)
    model = build_model(config, data)
    ours = sparse_trainer(config["MODEL_TYPE"], *config.lineage)(config, model, data)
    return ours, data, ours._graph_products() if way == "columns" else ours.graph.active(model)


def measure(variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of steps, and bytes beyond what was held before."""
    torch.set_num_threads(1)
    trainer, data, around = trainer_of(variant, options)
    batches = [batch for batch, _ in zip(data, range(4), strict=False)]
    trainer.model.train()
    seconds: list[float] = []
    with around:
        for number in range(-3, STEPS):
            if number == 0:
                held = settle_memory()
            started = perf_counter()
            trainer.optimizer.zero_grad()
            trainer.model.calculate_loss(batches[number % len(batches)]).backward()
            trainer.optimizer.step()
            if number >= 0:
                seconds.append(perf_counter() - started)
    live = sum(p.numel() for p in trainer.model.parameters())
    return {"seconds": seconds, "held": held, "peak": peak_of_process(), "weights": live}


AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
"""Has glibc give freed memory back."""


def in_a_process(variant: str, options: argparse.Namespace, **variables: str) -> dict[str, Any]:
    """:func:`measure` in a process of its own, with ``variables`` of the environment."""
    command = [sys.executable, __file__, "--dataset", options.dataset, "--variant", variant]
    command += [] if options.data is None else ["--data", str(options.data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})
    if done.returncode:
        sys.exit(f"{variant} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows_of(seconds: dict[str, list[float]], bytes_of: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every variant, beside the first one."""
    medians = {name: statistics.median(mine) for name, mine in seconds.items()}
    return [
        {
            "variant": "RecBole, dense" if name == "recbole" else f"ours, {name.split('-')[0]}",
            "columns": 64 if name == "recbole" else int(name.split("-")[1]),
            "weights": bytes_of[name]["weights"],
            "median_ms": round(median * 1e3, 1),
            "times_recbole": round(median / medians["recbole"], 2),
            "peak_mb": round((bytes_of[name]["peak"] - bytes_of[name]["held"]) / 2**20, 1),
        }
        for name, median in medians.items()
    ]


def main() -> None:
    """Measure, print a table, write JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path)
    options.add_argument("--dataset", default="ml-100k")
    options.add_argument("--out", type=Path)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--variant", choices=variants(), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    sys.argv = sys.argv[:1]  # RecBole reads the command line
    if chosen.variant:
        print(json.dumps(measure(chosen.variant, chosen)))
        return
    seconds: dict[str, list[float]] = {name: [] for name in variants()}
    for _ in range(chosen.rounds):
        for name, mine in seconds.items():
            mine += in_a_process(name, chosen)["seconds"]
    rows = rows_of(seconds, {name: in_a_process(name, chosen, **AT_ONCE) for name in seconds})
    print(f"| {' | '.join(rows[0])} |\n|---|{'---:|' * (len(rows[0]) - 1)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row.values()))} |")
    if chosen.out:
        setting = {"dataset": chosen.dataset, "density": DENSITY, "rounds": chosen.rounds, "steps": STEPS}
        result = {**provenance(), "seed": 2020, "setting": setting, "rows": rows}
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
