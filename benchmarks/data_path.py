"""Where the time of an epoch and of an evaluation goes, with RecBole's data path and with ours.

    python benchmarks/data_path.py --data_path DIR --out benchmarks/results/data_path.json

DIR holds the datasets gowalla, ml-1m and ml-1m-pos in RecBole's atomic format. Both paths
(``dsl_data_path`` ``recbole`` and ``fast``) run in one process and in turn, on the same batches of the same
model, so that a machine whose speed drifts is unfair to neither; times are processor time of one thread, so
that other work on the machine counts less. A part's time excludes the parts it calls.
Long epochs are cut: the times of whole ones are those per batch (per user in an evaluation) times their number.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.provenance import provenance  # noqa: E402
from benchmarks.speed_cell import DATASETS, MODELS  # noqa: E402
from recbole_dsl import neumf  # noqa: E402
from recbole_dsl.config import RecBoleDSLConfig  # noqa: E402
from recbole_dsl.experiment import build_model, load_data  # noqa: E402
from recbole_dsl.training.trainer import sparse_trainer  # noqa: E402

from recbole.data.interaction import Interaction  # noqa: E402  isort: skip

PATHS = ("recbole", "fast")
PAIRS = DATASETS["ml-1m"]["load_col"]
SPLIT = DATASETS["gowalla"]
# With the method that the numbers were measured with.
LABELED = {**MODELS["DeepFM"], "dsl_method": "dsl"}
ORDERED = {**DATASETS["ml-1m-pos"], **MODELS["SASRec"]}
SAMPLED = {
    "load_col": PAIRS,
    "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "uni100"},
}


class Case(NamedTuple):
    """A model on a dataset; how many batches of an epoch and users of an evaluation are measured."""

    name: str
    model: str
    dataset: str
    settings: dict[str, Any]
    batches: int
    users: int


ORDERED_SMALL = {**ORDERED, "train_batch_size": 512, "eval_batch_size": 512}
USERS = {"load_col": PAIRS, "train_neg_sample_args": None, "dsl_method": "dsl"}
CASES = [
    Case("BPR, ml-1m", "BPR", "ml-1m", {"load_col": PAIRS}, 100, 600),
    Case("BPR, gowalla", "BPR", "gowalla", SPLIT, 100, 600),
    Case("LightGCN, gowalla", "LightGCN", "gowalla", SPLIT, 2, 600),
    Case("BPR, ml-1m, uni100", "BPR", "ml-1m", SAMPLED, 20, 300),
    Case("SASRec, ml-1m-pos", "SASRec", "ml-1m-pos", ORDERED_SMALL, 2, 512),
    Case("MultiVAE, ml-1m", "MultiVAE", "ml-1m", USERS, 3, 600),
    Case("NeuMF, ml-1m", "NeuMF", "ml-1m", {"load_col": PAIRS}, 50, 300),
    Case("DeepFM, ml-1m", "DeepFM", "ml-1m", LABELED, 50, 20480),
]


class Clock:
    """Seconds by part, each without those of the parts inside it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside = 0.0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with its time added to ``part``."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            outer, self._inside = self._inside, 0.0
            started = process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = process_time() - started
                self.seconds[part] += spent - self._inside
                self._inside = outer + spent

        return call

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Time the method ``name`` of an object or class from now on."""
        setattr(owner, name, self.timed(part, getattr(owner, name)))

    def taken(self) -> dict[str, float]:
        """Seconds since the last call."""
        seconds, self.seconds = dict(self.seconds), Counter()
        return seconds


def limited(loader: Any, count: int, clock: Clock) -> Any:
    """The first ``count`` batches of a loader, whose making counts as ``loading``."""
    base = type(loader)

    def batches(self: Any) -> Iterator[Any]:
        made = base.__iter__(self)
        following = clock.timed("loading", functools.partial(next, made, None))
        return itertools.takewhile(lambda batch: batch is not None, (following() for _ in range(count)))

    loader.__class__ = type(base.__name__, (base,), {"__iter__": batches})
    return loader


class Run:
    """One model with one data path, ready to be measured as often as wanted."""

    def __init__(self, case: Case, path: str, data_path: str, checkpoints: str) -> None:
        sys.argv = sys.argv[:1]
        config = RecBoleDSLConfig(
            case.model,
            case.dataset,
            config_dict={
                "data_path": data_path,
                "checkpoint_dir": checkpoints,
                "state": "ERROR",
                "show_progress": False,
                "dsl_method": "dsl_plus",
                "dsl_density": 0.1,
                "dsl_data_path": path,
                **case.settings,
            },
        )
        _, self.train, self.valid, _ = load_data(config)
        model = build_model(config, self.train)
        self.trainer = sparse_trainer(config["MODEL_TYPE"], *config.lineage)(config, model, self.train)
        self.trainer.eval_collector.data_collect(self.train)
        self.batches, self.all_batches = min(case.batches, len(self.train)), len(self.train)
        self.all_users = self.valid.sample_size
        self.eval_batches = max(1, min(case.users, self.all_users) // self.valid.step)
        self.users = min(self.eval_batches * self.valid.step, self.all_users)
        self.clock = Clock()
        self._watch()

    def _watch(self) -> None:
        clock, trainer = self.clock, self.trainer
        for loader in (self.train, self.valid):
            if loader._sampler is not None and hasattr(loader._sampler, "sample_by_user_ids"):
                clock.watch(loader._sampler, "sample_by_user_ids", "sampling")
        limited(self.train, self.batches, clock)
        limited(self.valid, self.eval_batches, clock)
        self._watch_the_loss()
        clock.watch(trainer.optimizer, "step", "optimizer")
        clock.watch(trainer.optimizer, "zero_grad", "optimizer")
        self._watch_scores()
        for name in ("_full_sort_batch_eval", "_neg_sample_batch_eval"):
            clock.watch(trainer, name, "masking")
        clock.watch(trainer.eval_collector, "eval_batch_collect", "ranking")
        clock.watch(trainer.eval_collector, "get_data_struct", "metrics")
        clock.watch(trainer.evaluator, "evaluate", "metrics")
        self.epoch = clock.timed("rest", lambda: trainer._train_epoch(self.train, 0))
        self.evaluation = clock.timed("rest", lambda: trainer.evaluate(self.valid, load_best_model=False))

    def _watch_scores(self) -> None:
        model = self.trainer.model
        if self.trainer.dsl.data_path == "fast" and neumf.takes(model.eval()):
            self.clock.watch(neumf, "scores_of_all_items", "scores")  # with methods replaced, it is left alone
            return
        for name in ("full_sort_predict", "predict"):
            self.clock.watch(model, name, "scores")

    def _watch_the_loss(self) -> None:
        """On its way into the step: a model whose ``calculate_loss`` is replaced trains in another way."""
        plain, clock = self.trainer._step, self.clock

        def step(batch: Any, loss: Callable[..., Any], scaler: Any) -> Any:
            return plain(batch, clock.timed("forward", loss), scaler)

        self.trainer._step = step

    def measure(self, what: str) -> dict[str, float]:
        """Seconds by part of one ``epoch`` or ``evaluation``, cut as the case says."""
        backward, to = torch.Tensor.backward, Interaction.to
        torch.Tensor.backward = self.clock.timed("backward", backward)
        Interaction.to = self.clock.timed("transfer", to)
        try:
            getattr(self, what)()
        finally:
            torch.Tensor.backward, Interaction.to = backward, to
        return self.clock.taken()


def summary(parts: list[dict[str, float]], scale: float) -> dict[str, Any]:
    """Median of the whole, its estimate uncut, and the median share of every part."""
    totals = [sum(p.values()) for p in parts]
    names = sorted({name for p in parts for name in p})
    shares = {
        name: round(statistics.median(p.get(name, 0.0) / t for p, t in zip(parts, totals, strict=True)), 3)
        for name in names
    }
    whole = statistics.median(totals)
    return {"measured_seconds": round(whole, 3), "whole_seconds": round(whole * scale, 2), "shares": shares}


def measure(case: Case, data_path: str, checkpoints: str, rounds: int) -> dict[str, Any]:
    """Both paths in turn; one row of the result."""
    runs = {path: Run(case, path, data_path, checkpoints) for path in PATHS}
    taken: dict[tuple[str, str], list[dict[str, float]]] = {}
    for round_ in range(rounds + 1):
        for what, path in itertools.product(("epoch", "evaluation"), PATHS):
            parts = runs[path].measure(what)
            if round_:  # the first round fills caches
                taken.setdefault((what, path), []).append(parts)
    row: dict[str, Any] = {"case": case.name, **provenance(), "rounds": rounds}
    row |= {"batches": runs["fast"].batches, "users": runs["fast"].users}
    for what in ("epoch", "evaluation"):
        times = {}
        for path in PATHS:
            run = runs[path]
            scale = run.all_batches / run.batches if what == "epoch" else run.all_users / run.users
            row[f"{what} {path}"] = summary(taken[what, path], scale)
            times[path] = [sum(p.values()) * scale for p in taken[what, path]]
        ratios = [a / b for a, b in zip(times["recbole"], times["fast"], strict=True)]
        row[f"{what} times_faster"] = round(statistics.median(ratios), 2)
    return row


def line(row: dict[str, Any], what: str) -> str:
    """A row of the printed table."""
    told = [
        f"{measured['whole_seconds']} s: "
        + ", ".join(f"{name} {share:.0%}" for name, share in measured["shares"].items() if share >= 0.01)
        for measured in (row[f"{what} {path}"] for path in PATHS)
    ]
    return f"| {row['case']} | {what} | {row[f'{what} times_faster']} | {told[0]} | {told[1]} |"


def save(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the rows as JSON; rows of other cases that are there stay."""
    measured = {row["case"] for row in rows}
    earlier = json.loads(path.read_text())["rows"] if path.exists() else []
    kept = [row for row in earlier if row["case"] not in measured]
    path.write_text(json.dumps({"rows": kept + rows}, indent=2) + "\n")


def main() -> None:
    """Measure, print a table, write JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data_path", required=True, help="folder of the datasets")
    options.add_argument("--out", type=Path)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", default="", help="text in the names of the cases")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    data_path = str(Path(chosen.data_path).resolve())
    rows = []
    print("| case | what | × faster | RecBole: shares | fast: shares |\n|---|---|---:|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # RecBole writes logs into the working directory
        for case in CASES:
            if chosen.only not in case.name:
                continue
            row = measure(case, data_path, folder, chosen.rounds)
            rows.append(row)
            for what in ("epoch", "evaluation"):
                print(line(row, what), flush=True)
            if chosen.out:
                save(rows, ROOT / chosen.out)


if __name__ == "__main__":
    main()
