"""Seconds of products with gowalla's adjacency, and of training steps of graph models that use it.

    python benchmarks/graph_product.py --data FOLDER --out benchmarks/results/graph_product.json

FOLDER has gowalla/gowalla.{train,valid,test}.inter (RecBole's atomic files). One thread, all variants in
turn (A B C … A B C …), so that a machine whose speed drifts is unfair to none; ratios are of medians.

*Products*: RecBole's uncoalesced COO, torch's CSR, the compiled loop, the same with a gradient that has only a
batch's rows, and two that were tried and left out: with a packed table read where it lives, and a product of
which only the live positions are computed.

*Steps*: forward, backward and optimizer of RecBole's own model, of the sparse one with RecBole's products
(``dsl_graph: recbole``), and with ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.baseline import recbole_trainer  # noqa: E402
from benchmarks.provenance import provenance  # noqa: E402
from recbole_dsl.config import RecBoleDSLConfig  # noqa: E402
from recbole_dsl.experiment import build_model, load_data  # noqa: E402
from recbole_dsl.graph import Matrix, compress  # noqa: E402
from recbole_dsl.kernels import csr, loop  # noqa: E402
from recbole_dsl.training.trainer import sparse_trainer  # noqa: E402

MODELS = ("LightGCN", "NGCF")
DENSITIES = (1.0, 0.1)
BATCHES = 8


@loop
def packed_product(
    pointers: Any, columns: Any, values: Any, starts: Any, places: Any, weights: Any, out: Any
) -> None:
    """With a packed table: ``starts``, ``places``, ``weights`` are its row pointers, columns and values."""
    out[:] = 0
    for row in range(pointers.shape[0] - 1):
        for entry in range(pointers[row], pointers[row + 1]):
            value, column = values[entry], columns[entry]
            for live in range(starts[column], starts[column + 1]):
                out[row, places[live]] += value * weights[live]


@loop
def live_product(
    pointers: Any, columns: Any, values: Any, dense: Any, starts: Any, places: Any, out: Any
) -> None:
    """Only at the live positions of a packed table."""
    out[:] = 0
    for row in range(pointers.shape[0] - 1):
        for entry in range(pointers[row], pointers[row + 1]):
            value, column = values[entry], columns[entry]
            for live in range(starts[row], starts[row + 1]):
                out[live] += value * dense[column, places[live]]


def settings(folder: Path, **dsl: Any) -> dict[str, Any]:
    """RecBole's settings and ``dsl_`` ones."""
    return {
        "state": "ERROR", "show_progress": False, "seed": 2020, "data_path": str(folder),
        "benchmark_filename": ["train", "valid", "test"], "load_col": {"inter": ["user_id", "item_id"]},
        **{f"dsl_{key}": value for key, value in dsl.items()},
    }  # fmt: skip


def products(adjacency: Tensor, width: int, density: float, touched: int) -> dict[str, Callable[[], Any]]:
    """The products by name, of an adjacency and a random table."""
    draw = torch.Generator().manual_seed(0)
    rows = adjacency.shape[0]
    dense = torch.randn(rows, width, generator=draw)
    few = torch.zeros(rows, width)
    batch = torch.randint(rows, (touched,), generator=draw)
    few[batch] = dense[batch]
    live = torch.rand(rows, width, generator=draw) < density
    starts = csr.pointers_of(live.sum(1), torch.int32)
    places, weights = live.nonzero()[:, 1].to(torch.uint8).contiguous(), dense[live]
    matrix = compress(adjacency, sort=True)
    assert matrix is not None
    parts = matrix.parts
    out, at_live = torch.empty_like(dense), torch.empty_like(weights)
    return {
        "RecBole's COO": lambda: torch.sparse.mm(adjacency, dense),
        "RecBole's COO, transposed": lambda: torch.sparse.mm(adjacency.t(), dense),
        "torch's CSR": lambda: csr.product(parts, (), dense, "torch"),
        "compiled": lambda: csr.product(parts, (), dense, "numba"),
        "compiled, a batch's rows": lambda: csr.product(parts, parts, few, "numba"),
        f"tried: packed table, density {density}": lambda: packed_product(*parts, starts, places, weights, out),
        f"tried: live positions, density {density}": lambda: live_product(
            *parts, dense, starts, places, at_live
        ),
        "conversion": lambda: compress(adjacency, sort=False),
        "transpose and comparison": lambda: Matrix(*parts, matrix.width).transpose("numba"),
    }


def steps(name: str, folder: Path) -> dict[str, Callable[[int], None]]:
    """A training step of every variant of a model; its argument is a batch's number."""
    trainer, data, *_ = recbole_trainer(name, "gowalla", settings(folder))
    batches = [batch for batch, _ in zip(data, range(BATCHES), strict=False)]
    found = {"RecBole": step_of(trainer, batches)}
    for density in DENSITIES:
        config = RecBoleDSLConfig(
            name, "gowalla", config_dict=settings(folder, density=density, method="static")
        )
        _, train_data, *_ = load_data(config)
        model = build_model(config, train_data)
        ours = sparse_trainer(config["MODEL_TYPE"], *config.lineage)(config, model, train_data)
        found[f"dsl_graph=recbole, density {density}"] = step_of(ours, batches)
        found[f"dsl_graph=csr, density {density}"] = within(ours, step_of(ours, batches))
    return found


def step_of(trainer: Any, batches: list[Any]) -> Callable[[int], None]:
    """Forward, backward and optimizer as RecBole's trainer has them."""

    def step(number: int) -> None:
        trainer.optimizer.zero_grad()
        trainer.model.calculate_loss(batches[number % BATCHES]).backward()
        trainer.optimizer.step()

    return step


def within(trainer: Any, step: Callable[[int], None]) -> Callable[[int], None]:
    """A step in which products are ours."""

    def taken_over(number: int) -> None:
        with trainer.graph.active(trainer.model):
            step(number)

    return taken_over


def in_turn(
    variants: dict[str, Callable[..., Any]], rounds: int, numbered: bool = False
) -> list[dict[str, Any]]:
    """Medians of all variants, and how many times faster than the first each is."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-2, rounds):
        for name, run in variants.items():
            started = perf_counter()
            run(number) if numbered else run()
            if number >= 0:
                times[name].append(perf_counter() - started)
    first = statistics.median(next(iter(times.values())))
    return [
        {
            "variant": name,
            "median_ms": round(statistics.median(t) * 1e3, 1),
            "min_ms": round(min(t) * 1e3, 1),
            "times_faster": round(first / statistics.median(t), 2),
        }
        for name, t in times.items()
    ]


def adjacency_of(folder: Path) -> Tensor:
    """LightGCN's, as RecBole builds it."""
    trainer, *_ = recbole_trainer("LightGCN", "gowalla", settings(folder))
    return trainer.model.norm_adj_matrix


def main() -> None:
    """Measure, print tables, write JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path)
    options.add_argument("--width", type=int, default=64)
    options.add_argument("--density", type=float, default=0.1, help="of the packed table that was tried")
    options.add_argument("--touched", type=int, default=6144, help="rows that a batch of 2048 triples reaches")
    options.add_argument("--rounds", type=int, default=12)
    chosen = options.parse_args()
    sys.argv = sys.argv[:1]  # RecBole reads the command line
    torch.set_num_threads(1)
    adjacency = adjacency_of(chosen.data)
    told: dict[str, list[dict[str, Any]]] = {
        "products": in_turn(products(adjacency, chosen.width, chosen.density, chosen.touched), chosen.rounds)
    }
    for name in MODELS:
        told[name] = in_turn(steps(name, chosen.data), chosen.rounds, True)
    for name, rows in told.items():
        print(f"\n| {name} | median ms | min ms | × faster |\n|---|---:|---:|---:|")
        for row in rows:
            print(f"| {row['variant']} | {row['median_ms']} | {row['min_ms']} | {row['times_faster']} |")
    if chosen.out:
        kept = {k: v for k, v in vars(chosen).items() if k not in ("out", "data")}
        size = {"rows": adjacency.shape[0], "entries": adjacency._nnz()}
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        result = {**provenance(), "seed": 2020, "setting": {**kept, **size}, **told}
        chosen.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
