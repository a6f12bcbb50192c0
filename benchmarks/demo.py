"""What ``make run`` shows: LightGCN on ml-100k, RecBole dense against sparse at density 0.1.

    python benchmarks/demo.py [--epochs 40] [--out FILE.json]

Trains RecBole's own LightGCN, then ``dsl`` and ``dsl_plus``, all with the same learning rate, seed
and early stopping, and prints one table. The JSON holds every figure of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recbole_dsl.cli import spin_briefly  # noqa: E402

spin_briefly()  # for RecBole's training, too: beside another process each of its steps would wait for a core

from benchmarks.baseline import run_recbole_itself  # noqa: E402
from benchmarks.provenance import provenance  # noqa: E402
from recbole_dsl import run_recbole_dsl  # noqa: E402

DENSITY = 0.1
METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.005,
    "topk": [10, 20],
    "metrics": ["Recall", "NDCG"],
    "valid_metric": "NDCG@10",
    "stopping_step": 20,
    "state": "ERROR",
    "show_progress": False,
    "seed": 2020,
}


def run(epochs: int, method: str | None, folder: str) -> dict[str, Any]:
    """One training; ``method`` None is RecBole itself. Returns a row of the table."""
    settings = {**SETTINGS, "epochs": epochs, "checkpoint_dir": folder}
    if method is None:
        result = run_recbole_itself("LightGCN", "ml-100k", settings)
        live, test, costs = result["live"], result["test_result"], result["costs"]
        epochs_run = result["epochs_run"]
    else:
        settings |= {"dsl_method": method, "dsl_density": DENSITY}
        sparse = run_recbole_dsl("LightGCN", "ml-100k", config_dict=settings)
        live, test, costs = sparse.sparsity["live"], sparse.test_result, sparse.costs
        epochs_run = sparse.epochs_run
    return {
        "method": method or "RecBole dense",
        **{metric: test[metric] for metric in METRICS},
        "live weights": live,
        "weight + index bytes": costs["weight_bytes"] + costs["index_bytes"],
        "optimizer bytes": costs["optimizer_bytes"],
        "seconds per epoch": round(costs["seconds_per_epoch"], 3),
        "epochs": epochs_run,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as one Markdown table."""
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for row in rows:
        cells = [f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the three trainings and print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--epochs", type=int, default=40)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    out = chosen.out.resolve() if chosen.out else None
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # RecBole writes logs and TensorBoard files into the working directory
        for method in (None, "dsl", "dsl_plus"):
            print(f"training LightGCN on ml-100k: {method or 'RecBole dense'} …", flush=True)
            rows.append(run(chosen.epochs, method, folder))
        os.chdir(ROOT)
    print(f"\nLightGCN on ml-100k, density {DENSITY}, at most {chosen.epochs} epochs\n")
    print(markdown(rows))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        told = {**provenance(), "settings": {**SETTINGS, "epochs": chosen.epochs}, "rows": rows}
        out.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
