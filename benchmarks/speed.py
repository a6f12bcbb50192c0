"""Times and memory of training RecBole's models: RecBole itself, naive masks, ours dense and packed.

    python benchmarks/speed.py --data-path DIR [--only 'BPR/*'] [--variants recbole,'packed 0.1'] [--rounds 2]

Every cell (model, dataset, variant) is measured in a process of its own with one thread (forked from one
that has loaded the data, see speed_cell.py); the variants of a model follow each other, and every round
comes back to all of them (A B C … A B C …), so that a machine whose speed drifts is unfair to none.
Finished cells are lines of ``--out`` and are not run again. ``DIR`` holds the datasets in RecBole's format;
the tables of docs/speed.md come from the file with ``python -m benchmarks.speed_docs``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.journal import Cell, Journal, Run  # noqa: E402
from benchmarks.provenance import chosen_device, code_commit, device_name  # noqa: E402

MODELS = {
    "ml-1m": ("BPR", "NeuMF", "LightGCN", "NGCF", "MultiVAE", "DeepFM"),
    "gowalla": ("BPR", "NeuMF", "LightGCN", "NGCF", "MultiVAE"),
    "ml-1m-pos": ("SASRec",),
}
RECBOLE_SIDE = ("recbole", "naive")
VARIANTS = (*RECBOLE_SIDE, "ours 1.0", "packed 0.5", "packed 0.2", "packed 0.1", "packed 0.05")
QUICK = {"steps": 5, "seconds": 2.0, "epoch_seconds": 0.0}


def grid(only: list[str], variants: list[str], alone: bool) -> list[list[Cell]]:
    """Groups of cells that share loaded data (``alone``: one cell each), for patterns ``model/dataset``.

    A pattern without ``*`` may name a pair that is not in :data:`MODELS`.
    """
    pairs = [(model, dataset) for dataset, models in MODELS.items() for model in models]
    extra = [tuple(name.split("/", 1)) for name in only if "*" not in name and "/" in name]
    pairs += [pair for pair in extra if pair not in pairs]
    groups = []
    for model, dataset in pairs:
        if only and not any(fnmatch(f"{model}/{dataset}", pattern) for pattern in only):
            continue
        cells = [{"model": model, "dataset": dataset, "variant": variant} for variant in variants]
        sides = [[c for c in cells if (c["variant"] in RECBOLE_SIDE) == side] for side in (True, False)]
        groups += [[cell] for cell in cells] if alone else [side for side in sides if side]
    return groups


def main() -> int:
    """Run what is missing of the grid; 1 if a cell failed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--data-path", help="folder of the datasets; not needed for ml-100k")
    options.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/speed.jsonl")
    options.add_argument("--only", action="append", default=[], help="patterns such as 'BPR/*'")
    options.add_argument("--variants", default=",".join(VARIANTS))
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--quick", action="store_true", help="few steps, no whole epochs")
    options.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--step-seconds", type=float, default=5.0, help="longest time for the steps of a cell")
    options.add_argument("--epoch-seconds", type=float, default=20.0, help="longest epoch that is run whole")
    options.add_argument("--turn", type=Path, help="file that calls share to measure in turn, on a GPU")
    chosen = options.parse_args()
    variants = chosen.variants.split(",")
    for variant in variants:
        if variant not in VARIANTS and not re.fullmatch(r"packed (1(\.0)?|0?\.\d+)", variant):
            options.error(
                f"--variants: {variant!r} is none of {', '.join(VARIANTS)} or 'packed' with a density"
            )
    device = chosen_device(chosen.device)
    limits = {"seconds": chosen.step_seconds, "epoch_seconds": chosen.epoch_seconds}
    passed = ["--device", device.type, "--limits", json.dumps(QUICK if chosen.quick else limits)]
    if chosen.data_path:
        passed += ["--data-path", str(Path(chosen.data_path).resolve())]
    if chosen.turn:
        passed += ["--turn", str(chosen.turn.resolve())]
    script = ROOT / "benchmarks/speed_cell.py"
    run = Run(script, passed, chosen.threads, code_commit(), device_name(device))
    # A GPU's context and the threads of OpenMP do not survive a fork.
    alone = device.type != "cpu" or chosen.threads > 1
    groups = grid(chosen.only, variants, alone)
    failed = run.in_turn(groups, chosen.rounds, Journal(chosen.out.resolve()))
    for cell in failed:
        print("failed:", cell, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
