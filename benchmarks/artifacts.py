"""Sizes and metrics of artifacts: what serving's four kinds of values cost in accuracy, and save in bytes.

    python benchmarks/artifacts.py --out benchmarks/results/artifacts.jsonl
    python benchmarks/artifacts.py --cells gowalla --data_path DIR --out benchmarks/results/artifacts.jsonl

Each cell trains a model with its default settings for some epochs, exports its best epoch with every kind of
values, and notes the test metrics of the trained model and of the artifact, both by RecBole's evaluation, and
the bytes of the files. A cell that the file has is not run again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.journal import Journal  # noqa: E402
from benchmarks.provenance import code_commit, provenance  # noqa: E402
from recbole_dsl import SparseRecommender, export_artifact, run_recbole_dsl  # noqa: E402
from recbole_dsl.serving.quantise import VALUES  # noqa: E402

SETTINGS: dict[str, dict[str, Any]] = {
    "MultiVAE": {"train_neg_sample_args": None},
    "SASRec": {"train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": 20},
}
PUBLISHED_SPLIT = {
    "benchmark_filename": ["train", "valid", "test"], "load_col": {"inter": ["user_id", "item_id"]},
}  # fmt: skip
CELLS: dict[str, list[tuple[str, str, int]]] = {
    "ml-100k": [
        (model, "ml-100k", epochs)
        for model, epochs in {
            "BPR": 40, "LightGCN": 40, "NGCF": 10, "SimpleX": 10, "NeuMF": 10, "MultiVAE": 40, "SASRec": 1,
        }.items()
    ],
    "gowalla": [("BPR", "gowalla", 5), ("LightGCN", "gowalla", 5)],
}  # fmt: skip
"""Model, dataset, and most epochs: enough to have something to lose, not enough to compare models."""


def measure(model: str, dataset: str, epochs: int, setting: argparse.Namespace) -> dict[str, Any]:
    """Train, export with every kind of values, and read back."""
    folder = Path(tempfile.mkdtemp(prefix="artifacts-"))
    settings = {
        "dsl_density": setting.density, "epochs": epochs, "checkpoint_dir": str(folder / "saved"),
        "state": "ERROR", "show_progress": False, "topk": [10, 20], "metrics": ["Recall", "NDCG"],
        "valid_metric": "NDCG@10", "stopping_step": 10, "seed": setting.seed, **SETTINGS.get(model, {}),
    }  # fmt: skip
    if dataset != "ml-100k":
        settings |= {"data_path": setting.data_path or "dataset/", **PUBLISHED_SPLIT}
    result = run_recbole_dsl(model, dataset, config_dict=settings)
    (checkpoint,) = (p for p in (folder / "saved").glob("*.dsl") if not p.name.endswith("-last.dsl"))
    found: dict[str, Any] = {"epochs": result.epochs_run, "density": result.sparsity["density"], "values": {}}
    for values in VALUES:
        target = folder / values
        manifest = export_artifact(checkpoint, target, values=values, with_history=model == "SASRec")
        started = perf_counter()
        SparseRecommender.load(target)
        found["values"][values] = {
            "weights_file": manifest.sizes["weights_file"],
            "of_dense_fp32": round(manifest.sizes["weights_file"] / manifest.sizes["dense_fp32"], 4),
            "all_files": manifest.sizes["files"] + (target / "manifest.json").stat().st_size,
            "load_seconds": round(perf_counter() - started, 3),
            "trained": manifest.metrics["trained"],
            "artifact": manifest.metrics["artifact"],
            "largest_difference": manifest.metrics["largest_difference"],
        }
    found["dense_fp32"] = manifest.sizes["dense_fp32"]
    return found


def main() -> None:
    """Measure what is missing, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; what is there is kept")
    parser.add_argument("--cells", choices=CELLS, default="ml-100k")
    parser.add_argument("--data_path", help="folder of the datasets that do not ship with RecBole")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=2020)
    setting = parser.parse_args()
    out, data = setting.out.resolve(), setting.data_path
    setting.data_path = str(Path(data).resolve()) if data else None
    torch.set_num_threads(1)
    sys.argv = sys.argv[:1]  # RecBole reads the command line
    os.chdir(tempfile.mkdtemp(prefix="artifacts-"))  # and writes logs into the working directory
    journal, device = Journal(out), provenance()["device"]
    done = {tuple(line["cell"].values()) for line in journal.lines()}
    for model, dataset, epochs in CELLS[setting.cells]:
        cell = {
            "model": model,
            "dataset": dataset,
            "epochs": epochs,
            "density": setting.density,
            "seed": setting.seed,
        }
        if tuple(cell.values()) in done:
            continue
        result = measure(model, dataset, epochs, setting)
        journal.append(
            {
                "cell": cell,
                "round": 0,
                **provenance(),
                "code_commit": code_commit(),
                "device": device,
                "result": result,
            }
        )
        for values, row in result["values"].items():
            print(
                model,
                dataset,
                values,
                row["of_dense_fp32"],
                row["all_files"],
                row["largest_difference"],
                flush=True,
            )


if __name__ == "__main__":
    main()
