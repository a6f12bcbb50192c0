"""Cells of ``benchmarks/speed.py``: variants of one model on one dataset, each in a process of its own.

The variants of a call have their data from the same side, RecBole's own or ours. On a processor with one
thread they are loaded once and every variant is measured in a fork, whose memory is its own; elsewhere
there is one variant in a call. Steps are those of the real trainers, RecBole's own or ours, on batches of
the real loader: time is taken around the batches that ``_train_epoch`` asks for, so loading, sampling and
moving to the device are in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import baseline  # noqa: E402
from benchmarks.journal import Cell, Journal, each_in_a_fork, my_turn  # noqa: E402
from benchmarks.masking import NaiveMasks  # noqa: E402
from benchmarks.provenance import provenance  # noqa: E402
from benchmarks.stopwatch import (  # noqa: E402
    TimedLoader,
    now,
    peak_of_process,
    place,
    settle_memory,
    timed_hooks,
)
from recbole_dsl.config import RecBoleDSLConfig  # noqa: E402
from recbole_dsl.costs import held_bytes, optimizers_of  # noqa: E402
from recbole_dsl.experiment import build_model, load_data  # noqa: E402
from recbole_dsl.sparsity.targets import select_targets  # noqa: E402
from recbole_dsl.training.trainer import sparse_trainer  # noqa: E402

COMMON: dict[str, Any] = {
    "train_batch_size": 2048,
    "embedding_size": 64,
    "seed": 2020,
    "state": "ERROR",
    "show_progress": False,
    "checkpoint_dir": "saved",
}
"""RecBole's own batch size; 64 columns also for DeepFM, whose default is 10."""

_PAIRS: dict[str, Any] = {"load_col": {"inter": ["user_id", "item_id"]}}
DATASETS: dict[str, dict[str, Any]] = {
    "ml-100k": {},
    "ml-1m": _PAIRS,
    "gowalla": {**_PAIRS, "benchmark_filename": ["train", "valid", "test"]},
    "ml-1m-pos": {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}},
}
_CLICKS: dict[str, Any] = {
    "load_col": {
        "inter": ["user_id", "item_id", "label"],
        "user": "*",
        "item": ["item_id", "release_year", "genre"],
    },
    "train_neg_sample_args": None,
    "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": None, "mode": "labeled"},
    "metrics": ["AUC", "LogLoss"],
    "valid_metric": "AUC",
}
_SEQUENCES: dict[str, Any] = {
    "train_neg_sample_args": None,
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
}
MODELS: dict[str, dict[str, Any]] = {"DeepFM": _CLICKS, "SASRec": _SEQUENCES}
"""What a model needs besides its dataset."""

NAIVE_DENSITY = 0.1
RECBOLE_SIDE = ("recbole", "naive")


@dataclass(frozen=True)
class Limits:
    """How long a cell is measured.

    ``steps``: at most so many are timed, or for ``seconds`` and at least three (two of more than
    ``seconds`` each); ``epoch_seconds``: an epoch that will take less is run whole.
    """

    steps: int = 30
    seconds: float = 5.0
    epoch_seconds: float = 20.0


def settings_of(model: str, dataset: str, device: str, data_path: str | None) -> dict[str, Any]:
    """RecBole's settings of a cell, the same for all variants."""
    settings = {**COMMON, **DATASETS[dataset], **MODELS.get(model, {})}
    if device == "cpu":
        settings |= {"gpu_id": "", "use_gpu": False}
    if data_path is not None:
        settings["data_path"] = data_path
    return settings


def our_config(model: str, dataset: str, settings: dict[str, Any], variant: str) -> RecBoleDSLConfig:
    """Our configuration: ``dense`` at density 1, else ``dsl`` in the scope of the model's property file.

    The topology starts at random, which ``dsl`` means: which weights are live is no matter of time.
    """
    if variant == "ours 1.0":
        own: dict[str, Any] = {"dsl_method": "dense"}
    else:
        density = NAIVE_DENSITY if variant == "naive" else float(variant.removeprefix("packed "))
        own = {"dsl_method": "dsl", "dsl_init": "random", "dsl_density": density}
    return RecBoleDSLConfig(model, dataset, None, {**settings, **own})


@dataclass
class Loaded:
    """Training data of one side and the configuration they were made with; ``peak``: bytes until then."""

    config: Any
    train_data: Any
    peak: int


def load(cell: Cell, settings: dict[str, Any]) -> Loaded:
    """RecBole's data for its own trainers, ours for ours."""
    model, dataset = cell["model"], cell["dataset"]
    if cell["variant"] in RECBOLE_SIDE:
        config, _, train_data, *_ = baseline.recbole_data(model, dataset, settings)
    else:
        config = our_config(model, dataset, settings, cell["variant"])
        _, train_data, *_ = load_data(config)
    _use_libraries()
    return Loaded(config, train_data, peak_of_process())


def _use_libraries() -> None:
    """What torch loads at the first step of an optimizer (about 90 MB) is no memory of a variant."""
    weight = torch.nn.Parameter(torch.ones(1))
    for fused in (False, True):
        optimizer = torch.optim.Adam([weight], fused=fused)
        weight.square().sum().backward()
        optimizer.step()


@dataclass
class Prepared:
    """A trainer with its data; ``resident``: bytes of the process before the model was built."""

    trainer: Any
    data: Loaded
    resident: int | None
    masks: NaiveMasks | None = None


def prepare(cell: Cell, settings: dict[str, Any], data: Loaded) -> Prepared:
    """Build the model and the trainer of a variant."""
    resident = settle_memory()
    if cell["variant"] == "recbole":
        return Prepared(baseline.trainer_of(data.config, data.train_data), data, resident)
    config = our_config(cell["model"], cell["dataset"], settings, cell["variant"])
    if cell["variant"] == "naive":
        trainer = baseline.trainer_of(data.config, data.train_data)
        return Prepared(trainer, data, resident, naive_masks(trainer, config))
    network = build_model(config, data.train_data)
    trainer = sparse_trainer(config["MODEL_TYPE"], *config.lineage)(config, network, data.train_data)
    return Prepared(trainer, data, resident)


def naive_masks(trainer: Any, config: RecBoleDSLConfig) -> NaiveMasks:
    """Dense masks over the tensors that are sparse in ours."""
    dsl = config.dsl
    scope = select_targets(trainer.model, dsl.include, dsl.exclude, dsl.min_weights, config.left_to_files)
    masks = NaiveMasks([t.parameter for t in scope.taken], NAIVE_DENSITY)
    masks.attach(trainer.optimizer)
    return masks


def run_steps(prepared: Prepared, **limits: Any) -> tuple[TimedLoader, float]:
    """A part of an epoch of the trainer, and the seconds that all of it took."""
    device = torch.device(prepared.trainer.device)
    loader = TimedLoader(prepared.data.train_data, device, **limits)
    started = now(device)
    prepared.trainer._train_epoch(loader, 0, show_progress=False)
    return loader, now(device) - started


def time_updates(prepared: Prepared, times: int) -> dict[str, Any] | None:
    """Seconds of one update of all groups (the middle of ``times``), each after one training step.

    They are the first updates of a run, which exchange the most weights. None if there are none.
    """
    explorer = prepared.trainer.sparse.explorer
    if not all(progress.settings.updates for progress in explorer.progress):
        return None
    seconds = []
    for _ in range(times):
        place(explorer, 1)
        with timed_hooks(explorer, torch.device(prepared.trainer.device)) as spent:
            run_steps(prepared, steps=1)
        seconds.append(sum(spent))
    place(explorer, explorer.progress[0].settings.update_interval)
    return {
        "update_s": statistics.median(seconds[1:] or seconds),  # the first one compiles
        "update_interval": [progress.settings.update_interval for progress in explorer.progress],
        "live": prepared.trainer.sparse.live,
    }


def measure(prepared: Prepared, limits: Limits) -> dict[str, Any]:
    """Times and bytes of a prepared cell.

    ``core_share``: processor time / wall time of the timed steps; on a CPU less than 1 means that others
    had the core meanwhile.
    """
    trainer = prepared.trainer
    warm, _ = run_steps(prepared, steps=3, seconds=limits.seconds / 4)
    slow = min(warm.each) > limits.seconds
    times = 1 if slow else 3 if min(warm.each) < 1 else 2
    updates = time_updates(prepared, times) if hasattr(trainer, "sparse") else None
    busy = process_time()
    if min(warm.each) * len(prepared.data.train_data) < limits.epoch_seconds:
        timed, seconds = run_steps(prepared)
    else:
        timed, seconds = run_steps(prepared, steps=limits.steps, seconds=limits.seconds, least=2 if slow else 3)
    busy = (process_time() - busy) / seconds
    step = statistics.median(timed.each)
    share = 0.0
    if updates is not None:
        share = updates["update_s"] / min(updates["update_interval"])
    steps = len(prepared.data.train_data)
    return {
        "step_s": step,
        "step_with_updates_s": step + share,
        "load_s": statistics.median(timed.load),
        "compute_s": statistics.median(timed.compute),
        "min_step_s": min(timed.each),
        "core_share": busy,
        "steps_timed": len(timed.each),
        "steps_per_epoch": steps,
        "epoch_s": seconds if timed.whole else (step + share) * steps,
        "epoch_measured": timed.whole,
        "updates": updates,
        **memory(prepared),
    }


def memory(prepared: Prepared) -> dict[str, Any]:
    """Bytes: peak of the process, growth of its peak from building the model on, training state."""
    trainer, device = prepared.trainer, torch.device(prepared.trainer.device)
    peak, resident = peak_of_process(), prepared.resident
    held = held_bytes(trainer.model, *optimizers_of(trainer))
    if prepared.masks is not None:
        held["index_bytes"] += prepared.masks.bytes
    explorer = trainer.sparse.explorer if hasattr(trainer, "sparse") else None
    return {
        "peak_process_bytes": max(peak, prepared.data.peak),
        "peak_training_bytes": None if resident is None else peak - resident,
        "peak_device_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "held_bytes": sum(held.values()),
        **held,
        "growth_bytes": explorer.growth_bytes if explorer is not None else 0,
        "record_bytes": explorer.record_bytes if explorer is not None else 0,
    }


def main() -> None:
    """Measure the cells and write a line about each."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cells", type=json.loads, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--round", type=int, default=0)
    options.add_argument("--data-path")
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--limits", type=json.loads, default={})
    options.add_argument("--turn", type=Path)
    chosen = options.parse_args()
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    torch.set_num_threads(chosen.threads)
    limits = Limits(**chosen.limits)
    if chosen.round > 0:  # one whole epoch of each cell is enough
        limits = replace(limits, epoch_seconds=0.0)
    first = chosen.cells[0]
    settings = settings_of(first["model"], first["dataset"], chosen.device, chosen.data_path)
    data = load(first, settings)

    def line(cell: Cell) -> dict[str, Any]:
        prepared = prepare(cell, settings, data)
        result = measure(prepared, limits)
        told = provenance(torch.device(prepared.trainer.device))
        return {"cell": cell, **told, "limits": asdict(limits), "result": result}

    if len(chosen.cells) > 1:
        each_in_a_fork(chosen.cells, line, chosen.out)
    else:
        with my_turn(chosen.turn):
            Journal(chosen.out).append(line(first))


if __name__ == "__main__":
    main()
