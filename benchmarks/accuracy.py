"""Accuracy at equal bytes on ml-100k: RecBole dense, narrow (tuned), dsl_plus, dsl, static.

    python benchmarks/accuracy.py --out benchmarks/results/accuracy.jsonl [--model LightGCN]

Every finished cell is one JSON line, and a cell that is there already is not run again, so the
script can be stopped and goes on where it was. ``python benchmarks/accuracy.py --table FILE``
prints the averages over seeds. The learning rates of dense and narrow are chosen on validation
NDCG@10 with the first seed; ours are not tuned.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SEEDS = (2020, 2021, 2022)
PROTOCOL = {
    "epochs": 200,
    "stopping_step": 20,
    "eval_step": 1,
    "topk": [10, 20],
    "metrics": ["Recall", "NDCG", "MRR", "Hit", "Precision"],
    "valid_metric": "NDCG@10",
    "show_progress": False,
    "state": "ERROR",
}
FROM_FACTORS = {"dsl_init_values": "topology", "dsl_update_ratio": 0.2}
FROM_MODEL = {"dsl_init_values": "model", "dsl_update_ratio": 0.5}


@dataclass(frozen=True)
class Plan:
    """What is run for a model.

    ``dense``, ``narrow``: learning rates to choose from; ``narrow_size``: the settings that make the
    model narrow, the largest size whose weight bytes ≤ the sparse model's weight + index bytes;
    ``rate``: the learning rate of our methods; ``methods`` and, with one seed each, ``trials``:
    other settings of ``dsl_plus`` that its defaults were chosen from.
    """

    dense: tuple[float, ...]
    narrow: tuple[float, ...]
    narrow_size: dict[str, int]
    rate: float
    methods: tuple[str, ...]
    trials: dict[str, dict[str, Any]]
    density: float = 0.125


TRIALS = {"from the factors' values": FROM_FACTORS, "from the model's values": FROM_MODEL}
PLANS = {
    "LightGCN": Plan(
        dense=(0.002, 0.005, 0.01), narrow=(0.005, 0.01, 0.02), narrow_size={"embedding_size": 11},
        rate=0.005, methods=("dsl_plus", "dsl", "static"), trials=TRIALS,
    ),
    "BPR": Plan(
        dense=(0.0005, 0.001, 0.002, 0.005), narrow=(0.001, 0.002, 0.005, 0.01),
        narrow_size={"embedding_size": 11}, rate=0.003, methods=("dsl_plus", "dsl", "static"), trials=TRIALS,
    ),
    "NeuMF": Plan(
        dense=(0.0005, 0.001, 0.002), narrow=(), narrow_size={},
        rate=0.001, methods=("dsl_plus", "dsl"), trials=TRIALS,
    ),
    "MultiVAE": Plan(
        dense=(0.0005, 0.001, 0.002), narrow=(), narrow_size={},
        rate=0.001, methods=("dsl",), trials={}, density=0.5,
    ),
}  # fmt: skip


Cell = dict[str, Any]


def key_of(cell: Cell) -> str:
    """A stable name for a cell."""
    return json.dumps(cell, sort_keys=True)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Run one cell in this process and return its result."""
    import torch

    torch.set_num_threads(1)
    settings = {**PROTOCOL, **cell["settings"], "seed": cell["seed"]}
    with tempfile.TemporaryDirectory() as folder:
        settings["checkpoint_dir"] = folder
        if cell["method"] in ("dense", "narrow"):
            from benchmarks.baseline import run_recbole_itself

            return run_recbole_itself(cell["model"], "ml-100k", settings)
        from dataclasses import asdict

        from recbole_dsl import run_recbole_dsl

        settings["dsl_method"] = cell["method"]
        result = asdict(run_recbole_dsl(cell["model"], "ml-100k", config_dict=settings))
        del result["environment"]  # beside the result, in every line
        for key in ("data_path", "checkpoint_dir"):  # of this machine
            result["config"].pop(key, None)
        return result


def run_missing(cell: Cell, out: Path) -> dict[str, Any]:
    """The finished line of a cell, after running it in a process of its own if there is none."""
    for line in out.read_text().splitlines() if out.exists() else []:
        done = json.loads(line)
        if key_of(done["cell"]) == key_of(cell):
            return done
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--cell", key_of(cell), "--out", str(result)]
        subprocess.run(command, check=True, cwd=folder)
        line = {"cell": cell, **json.loads(result.read_text())}
    with out.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(cell["model"], cell["label"], cell["seed"], line["result"]["test_result"], flush=True)
    return line


def tuned(
    model: str, label: str, method: str, settings: dict, rates: tuple[float, ...], out: Path
) -> Iterator[Cell]:
    """Cells of a baseline whose learning rate is tuned with the first seed."""
    trials = []
    for rate in rates:
        cell = {
            "model": model,
            "label": label,
            "method": method,
            "seed": SEEDS[0],
            "settings": {**settings, "learning_rate": rate},
        }
        trials.append((run_missing(cell, out)["result"]["best_valid_result"]["ndcg@10"], rate))
    best = max(trials)[1]
    for seed in SEEDS:
        yield {
            "model": model,
            "label": label,
            "method": method,
            "seed": seed,
            "settings": {**settings, "learning_rate": best},
        }


def grid(model: str, out: Path) -> Iterator[Cell]:
    """All cells of a model."""
    plan = PLANS[model]
    yield from tuned(model, "dense", "dense", {}, plan.dense, out)
    if plan.narrow:
        size = next(iter(plan.narrow_size.values()))
        yield from tuned(model, f"narrow d={size}", "narrow", plan.narrow_size, plan.narrow, out)
    for label, settings in plan.trials.items():
        yield from sparse(model, "dsl_plus", f"dsl_plus {label}", settings, SEEDS[:1])
    for method in plan.methods:
        yield from sparse(model, method, method, {}, SEEDS)


def sparse(
    model: str, method: str, label: str, settings: dict[str, Any], seeds: tuple[int, ...]
) -> Iterator[Cell]:
    """Cells of one of our methods."""
    plan = PLANS[model]
    for seed in seeds:
        yield {
            "model": model,
            "label": f"{label}, density {plan.density}",
            "method": method,
            "seed": seed,
            "settings": {"dsl_density": plan.density, "learning_rate": plan.rate, **settings},
        }


def table(path: Path, metric: str = "ndcg@10") -> str:
    """Mean and standard deviation over seeds, and the ratio to dense; only the chosen rates."""
    rows: dict[tuple[str, str], dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for line in path.read_text().splitlines():
        done = json.loads(line)
        cell = done["cell"]
        rows[cell["model"], cell["label"]][json.dumps(cell["settings"])].append(done["result"])
    told, dense = [], {}
    for (model, label), by_setting in rows.items():
        results = max(by_setting.values(), key=lambda r: (len(r), r[0]["best_valid_result"][metric]))
        scores = [r["test_result"][metric] for r in results]
        mean = statistics.mean(scores)
        dense.setdefault(model, mean)
        spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
        told.append(
            f"| {model} | {label} | {mean:.4f} ± {spread:.4f} | {mean / dense[model]:.3f} | {len(scores)} |"
        )
    head = f"| model | method | test {metric} | / dense | seeds |\n|---|---|---|---|---|"
    return "\n".join([head, *told])


def main() -> None:
    """Run the grid, one cell, or print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/accuracy.jsonl")
    options.add_argument("--model", default="LightGCN", choices=PLANS)
    options.add_argument("--cell")
    options.add_argument("--table", type=Path)
    chosen = options.parse_args()
    sys.argv = sys.argv[:1]
    if chosen.table:
        print(table(chosen.table))
    elif chosen.cell:
        from benchmarks.provenance import provenance

        told = {**provenance(), "result": run_cell(json.loads(chosen.cell))}
        chosen.out.write_text(json.dumps(told))
    else:
        for cell in grid(chosen.model, chosen.out.resolve()):
            run_missing(cell, chosen.out.resolve())


if __name__ == "__main__":
    main()
