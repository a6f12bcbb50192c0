"""Latency, throughput and memory of exact top-20 search over trained sparse vectors, beside dense search.

    OMP_NUM_THREADS=1 python benchmarks/serving.py --out benchmarks/results/serving.json

For each number of items, a BPR model of sparse tables is trained on generated interactions whose items have a
long-tailed popularity and belong to clusters of users' tastes, with updates of the topology (Adam, accumulated
growth); so live weights are where training has put them. Then every variant answers the same queries, in turn:
one user at a time, and 256 users at once. Dense variants hold the same vectors with their zeros. Two more:
dense queries over the same sparse items (models that aggregate a user's items), and dense vectors on both
sides (graph models), where there is nothing sparse left to use.

``implicit`` is measured where it is installed (``pip install implicit``).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.bpr_model import BPR  # noqa: E402
from benchmarks.provenance import provenance  # noqa: E402
from recbole_dsl import sparsify  # noqa: E402
from recbole_dsl.exporting import table_of  # noqa: E402
from recbole_dsl.serving import loops  # noqa: E402
from recbole_dsl.serving.search import DenseItems, SparseItems, top_of_panels  # noqa: E402
from recbole_dsl.serving.table import SparseTable  # noqa: E402

K, BATCH = 20, 256
Search = Callable[[np.ndarray], Any]
"""Answers for some rows of the users' table."""


class Interactions:
    """Draws interactions: an item's popularity falls with its rank, and users prefer some clusters of items."""

    def __init__(self, users: int, items: int, seed: int, clusters: int = 50, exponent: float = 0.8) -> None:
        self._random = np.random.default_rng(seed)
        self._users, self._items, self._clusters, self._exponent = users, items, clusters, exponent
        self._tastes = self._random.integers(0, clusters, (users, 3))

    def batch(self, size: int) -> list[Tensor]:
        """Users, items that they have, and uniformly drawn other ones."""
        users = self._random.integers(0, self._users, size)
        ranks = np.minimum(
            (self._random.random(size) ** (1 / (1 - self._exponent)) * self._items).astype(np.int64),
            self._items - 1,
        )
        tastes = self._tastes[users, self._random.integers(0, 3, size)]
        # Items of cluster c are those whose number is c modulo the number of clusters; 1 in 5 is of any.
        chosen = np.where(
            self._random.random(size) < 0.8, ranks // self._clusters * self._clusters + tastes, ranks
        )
        positive = np.minimum(chosen, self._items - 1)
        return [
            torch.from_numpy(part) for part in (users, positive, self._random.integers(0, self._items, size))
        ]


def trained(items: int, setting: argparse.Namespace) -> tuple[SparseTable, SparseTable, dict[str, Any]]:
    """The tables of users and items after training, and what training was."""
    torch.manual_seed(setting.seed)
    with torch.device("meta"):
        model = BPR(setting.users, items, setting.columns)
    steps = max(setting.least_steps, min(setting.steps, int(setting.steps * 1_000_000 / items)))
    interval = max(1, steps // setting.updates - 1)
    handle = sparsify(
        model, setting.density, groups="per_tensor", update_interval=interval, end=interval * setting.updates,
        update_ratio=0.3, seed=setting.seed,
        initial_values=lambda info, positions, g: 0.02 * torch.randn(len(positions), generator=g),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.learning_rate, fused=True)
    handle.attach(optimizer)
    source = Interactions(setting.users, items, setting.seed)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(*source.batch(setting.batch))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    users, rows = (table_of(group, 0) for group in handle.groups)
    counts = np.sort(rows.counts)[::-1]
    return users, rows, {
        "steps": steps,
        "updates": handle.explorer.updates,
        "loss_first": round(losses[0], 4),
        "loss_last": round(float(np.mean(losses[-20:])), 4),
        "live_per_user": round(float(users.counts.mean()), 2),
        "live_per_item": round(float(counts.mean()), 2),
        "live_per_item_of_the_fullest_tenth": round(float(counts[: len(counts) // 10].mean()), 2),
        "live_per_item_of_the_emptiest_tenth": round(float(counts[-len(counts) // 10 :].mean()), 2),
    }  # fmt: skip


def without_numba(search: Search) -> Search:
    """The same as where numba is not installed."""

    def call(users: np.ndarray) -> Any:
        plain = loops.available
        loops.available = lambda: False
        try:
            return search(users)
        finally:
            loops.available = plain

    return call


def dense_variants(users: np.ndarray, items: np.ndarray) -> dict[str, Search]:
    """Exact search of dense vectors by others."""
    of_items, of_users = torch.from_numpy(items), torch.from_numpy(users)
    # Several users at once in pieces whose scores take 256 MB at most.
    piece = max(1, 2**26 // len(items))

    def pieces(numbers: np.ndarray) -> list[np.ndarray]:
        return [numbers[start : start + piece] for start in range(0, len(numbers), piece)]

    def numpy_(numbers: np.ndarray) -> Any:
        found = []
        for part in pieces(numbers):
            scores = users[part] @ items.T
            best = np.argpartition(scores, len(items) - K, axis=1)[:, -K:]
            order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
            found.append(np.take_along_axis(best, order, 1))
        return np.concatenate(found)

    def torch_(numbers: np.ndarray) -> Any:
        scores = (of_users[torch.from_numpy(part)] @ of_items.T for part in pieces(numbers))
        return torch.cat([torch.topk(part, K).indices for part in scores]).numpy()

    variants = {"dense numpy": numpy_, "dense torch": torch_}
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(1)
        index = faiss.IndexFlatIP(items.shape[1])
        index.add(items)
        variants["faiss IndexFlatIP"] = lambda numbers: index.search(users[numbers], K)[1]
    if importlib.util.find_spec("implicit"):
        from implicit.cpu.topk import topk

        variants["implicit"] = lambda numbers: topk(items, users[numbers], K, num_threads=1)[0]
    return variants


def measured(
    variants: dict[str, Search], count: int, rounds: tuple[int, int], setting: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each variant: milliseconds of one user, users a second of a batch; the same users for all.

    ``rounds``: of single users and of batches.
    """
    random = np.random.default_rng(setting.seed + 1)
    singles: dict[str, list[float]] = {name: [] for name in variants}
    batches: dict[str, list[float]] = {name: [] for name in variants}
    for search in variants.values():
        search(np.arange(20))  # compiles, and builds what is built once
        search(np.arange(1))
    for turn in range(rounds[0]):
        queries = random.integers(0, count, setting.queries)
        several = random.integers(0, count, BATCH)
        # A variant's queries come one after the other, as in a server, so that what fits into a cache is in it.
        for name, search in variants.items():
            for query in queries:
                started = perf_counter()
                search(np.array([query]))
                singles[name].append(1e3 * (perf_counter() - started))
        for name, search in variants.items() if turn < rounds[1] else ():
            started = perf_counter()
            search(several)
            batches[name].append(perf_counter() - started)
    return [
        {
            "variant": name,
            "p50_ms": round(float(np.percentile(singles[name], 50)), 3),
            "p99_ms": round(float(np.percentile(singles[name], 99)), 3),
            "users_per_second": round(BATCH / float(np.median(batches[name])), 1),
        }
        for name in variants
    ]


def require_same(variants: dict[str, Search], users: np.ndarray, items: np.ndarray) -> None:
    """All variants find items of the same scores, up to rounding."""
    numbers = np.arange(0, len(users), max(1, len(users) // 20))[:20]
    first: np.ndarray | None = None
    for name, search in variants.items():
        found = _items(search(numbers))
        scores = np.stack([items[row] @ users[number] for row, number in zip(found, numbers, strict=True)])
        first = scores if first is None else first
        worst = float(np.abs(scores - first).max() / np.abs(first).max())
        assert worst < 1e-5, f"{name} finds items whose scores differ by {worst:.2g}"


def _items(found: Any) -> list[list[int]]:
    return [list(map(int, row[0] if isinstance(row, tuple) else row)) for row in found]


def cases(users: SparseTable, items: SparseTable, setting: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases over one table of items."""
    dense_users, dense_items = users.dense(), items.dense()
    ours = SparseItems(items)
    none = np.zeros(0, np.int64)

    def sparse(numbers: np.ndarray) -> Any:
        return ours.top(users.rows(numbers), K, [none] * len(numbers))

    others = dense_variants(dense_users, dense_items)
    variants = {"sparse × sparse, numba": sparse, "sparse × sparse, numpy": without_numba(sparse), **others}
    require_same(variants, dense_users, dense_items)
    rounds = (setting.rounds, setting.batch_rounds) if items.shape[0] <= 3_000_000 else (2, 1)
    result = [
        {"case": "BPR: sparse users, sparse items", "rows": measured(variants, users.shape[0], rounds, setting)}
    ]

    mixed = np.random.default_rng(setting.seed).standard_normal((2048, users.width), dtype=np.float32)
    variants = {
        "dense × sparse, numba": lambda numbers: ours.top(mixed[numbers], K, [none] * len(numbers)),
        "dense × sparse, by panels": lambda n: top_of_panels(items, mixed[n], K, [none] * len(n)),
        **dense_variants(mixed, dense_items),
    }
    require_same(variants, mixed, dense_items)
    result.append(
        {"case": "dense users, sparse items", "rows": measured(variants, len(mixed), rounds, setting)}
    )

    dense_items += 0.01 * np.random.default_rng(setting.seed).standard_normal(
        dense_items.shape, dtype=np.float32
    )
    dense = DenseItems(dense_items)

    def answer(numbers: np.ndarray) -> Any:
        return dense.top(mixed[numbers], K, [none] * len(numbers))

    variants = {
        "dense × dense, numba": answer,
        "dense × dense, numpy": without_numba(answer),
        **dense_variants(mixed, dense_items),
    }
    require_same(variants, mixed, dense_items)
    result.append(
        {"case": "graph models: dense vectors", "rows": measured(variants, len(mixed), rounds, setting)}
    )
    return result


def memory(items: SparseTable) -> dict[str, float]:
    """Bytes of each layout, and shares of the dense table's."""
    ours = SparseItems(items)
    dense = items.shape[0] * items.width * 4
    sizes = {"rows": items.nbytes, "inverted index": ours.columns.nbytes}
    return {"dense_bytes": dense, **sizes, **{f"{k}, share": round(v / dense, 4) for k, v in sizes.items()}}


def options() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--items", default="1e5,1e6,1e7", help="numbers of items, with commas")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=8192, help="triples of a training step")
    parser.add_argument("--steps", type=int, default=2000, help="training steps at a million items and below")
    parser.add_argument("--least-steps", type=int, default=200)
    parser.add_argument("--updates", type=int, default=20, help="updates of the topology")
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=5, help="2 for more than 3 million items")
    parser.add_argument("--batch-rounds", type=int, default=3, help="1 for more than 3 million items")
    parser.add_argument("--queries", type=int, default=40, help="single users in a round")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    """Train, measure, print, write."""
    setting = options().parse_args()
    torch.set_num_threads(1)
    results = []
    for items in (int(float(text)) for text in setting.items.split(",")):
        users, rows, training = trained(items, setting)
        found = {
            "items": items,
            "training": training,
            "memory": memory(rows),
            "cases": cases(users, rows, setting),
        }
        results.append(found)
        print(f"\n{items:,} items: {training}\n{found['memory']}")
        for case in found["cases"]:
            print(f"\n{case['case']}\n| variant | p50 ms | p99 ms | users/s at {BATCH} |\n|---|---:|---:|---:|")
            for row in case["rows"]:
                print(f"| {row['variant']} | {row['p50_ms']} | {row['p99_ms']} | {row['users_per_second']} |")
        sys.stdout.flush()
        if setting.out:
            told = {key: value for key, value in vars(setting).items() if key != "out"}
            setting.out.parent.mkdir(parents=True, exist_ok=True)
            setting.out.write_text(
                json.dumps({**provenance(), "setting": told, "results": results}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
