"""What dense alone would cost in the comparisons of order.yaml that are not run, from some of its batches.

    python -m benchmarks.unrun --data FOLDER [MODEL/DATASET ...]

Without names: those without cells. CPU seconds of one thread (so a busy machine adds little): medians over
batches of training and of validation by RecBole's own classes, with RecBole's default learning rate and the
dataset's schedule and the comparison's own settings, times how many there are. Each goes into
benchmarks/results/unrun.json when it is measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Iterable
from time import process_time
from typing import Any

import torch
import yaml

from benchmarks import grid
from benchmarks.baseline import recbole_trainer
from benchmarks.provenance import provenance
from benchmarks.speed_docs import RESULTS

OUT = RESULTS / "unrun.json"
BATCHES = 8


def estimate(model: str, dataset: str, data_path: str) -> dict[str, Any]:
    """Seconds of an epoch's training, of a validation, and of a dense run that takes all planned epochs."""
    schedule = yaml.safe_load((grid.FOLDER / f"{dataset}.yaml").read_text(encoding="utf-8"))
    settings = {**schedule, **grid.settings_of(grid.by_name().get(f"{model}/{dataset}", {}))}
    trainer, train, valid, _ = recbole_trainer(
        model, dataset, {**settings, "data_path": data_path, "seed": 2020, "device": "cpu", "state": "ERROR"}
    )
    network, optimizer = trainer.model, trainer.optimizer

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        losses = network.calculate_loss(batch)
        (sum(losses) if isinstance(losses, tuple) else losses).backward()
        optimizer.step()

    network.train()
    training = _median_seconds(step, train) * len(train)
    trainer.tot_item_num, trainer.item_tensor = train.dataset.item_num, train.dataset.get_item_feature()
    network.eval()
    with torch.no_grad():
        validation = _median_seconds(trainer._full_sort_batch_eval, valid) * len(valid)
    epochs = settings["epochs"]
    return {
        "model": model,
        "dataset": dataset,
        "batches": len(train),
        "epochs": epochs,
        "training_seconds": training,
        "validation_seconds": validation,
        "run_seconds": epochs * training + epochs // settings["eval_step"] * validation,
        **provenance(),
    }


def _median_seconds(do: Callable[[Any], Any], batches: Iterable[Any]) -> float:
    """Of one batch, over some; the first, which warms up, aside."""
    seconds = []
    for batch in itertools.islice(batches, BATCHES + 1):
        start = process_time()
        do(batch)
        seconds.append(process_time() - start)
    return statistics.median(seconds[1:] or seconds)


def measured() -> dict[str, dict[str, Any]]:
    """What :func:`estimate` has said of the comparisons, by MODEL/DATASET."""
    found: dict[str, dict[str, Any]] = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    return found


def not_run() -> list[tuple[str, str]]:
    """Model and dataset of the comparisons of order.yaml that have no cells."""
    pairs = [(one["model"], one["dataset"]) for one in grid.order()]
    return [pair for pair in pairs if not (RESULTS / f"compare/{'-'.join(pair)}/cells").is_dir()]


def main() -> None:
    """Measure and write, one comparison at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder that holds the datasets")
    parser.add_argument("pairs", nargs="*", metavar="MODEL/DATASET")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = measured()
    for model, dataset in [tuple(pair.split("/")) for pair in asked.pairs] or not_run():
        found[f"{model}/{dataset}"] = told = estimate(model, dataset, asked.data)
        OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{model}/{dataset}: {told['run_seconds'] / 3600:.1f} hours", flush=True)


if __name__ == "__main__":
    main()
