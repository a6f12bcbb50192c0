"""Seconds of one BPR training step: RecBole dense, fused dense, naive masks, packed.

    python benchmarks/bpr_step.py --out benchmarks/results/bpr_step.json

Two tables of 200 000 rows × 64 columns, batch 2048, one thread, all variants in one run and in turn
(A B C … A B C …), so that a machine whose speed drifts is unfair to none. Reports the median and the
ratio to RecBole's own step, and the bytes each variant holds between steps.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.provenance import provenance  # noqa: E402
from recbole_dsl import sparsify  # noqa: E402
from recbole_dsl.costs import held_bytes  # noqa: E402

DENSITIES = (0.5, 0.1, 0.05)


class BPR(nn.Module):
    """RecBole's BPR model and loss without its data classes."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.user_embedding = nn.Embedding(rows, columns)
        self.item_embedding = nn.Embedding(rows, columns)

    def forward(self, user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The BPR loss of a batch of triples."""
        u = self.user_embedding(user)
        better = (u * self.item_embedding(positive)).sum(1)
        worse = (u * self.item_embedding(negative)).sum(1)
        return -torch.log(1e-10 + torch.sigmoid(better - worse)).mean()


Step = Callable[[Tensor, Tensor, Tensor], None]


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """One step as RecBole's trainer makes it."""

    def step(*batch: Tensor) -> None:
        optimizer.zero_grad()
        model(*batch).backward()
        optimizer.step()

    return step


def masked_step(model: BPR, optimizer: torch.optim.Optimizer, density: float) -> Step:
    """The published simulation: dense tensors times dense float masks, re-masked at every step."""
    tables = [model.user_embedding.weight, model.item_embedding.weight]
    masks = [(torch.rand_like(t) < density).float() for t in tables]

    def step(*batch: Tensor) -> None:
        with torch.no_grad():
            for table, mask in zip(tables, masks, strict=True):
                table.mul_(mask)
        optimizer.zero_grad()
        model(*batch).backward()
        for table, mask in zip(tables, masks, strict=True):
            table.grad.mul_(mask)
        optimizer.step()

    return step


def variants(rows: int, columns: int) -> dict[str, Callable[[], tuple[Step, dict[str, Any]]]]:
    """Builders of every variant; each returns its step and the bytes it holds (after a step)."""

    def dense(fused: bool) -> tuple[Step, dict[str, Any]]:
        model = BPR(rows, columns)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused or None)
        return plain_step(model, optimizer), {"model": model, "optimizer": optimizer, "groups": []}

    def masked() -> tuple[Step, dict[str, Any]]:
        model = BPR(rows, columns)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        parts = {"model": model, "optimizer": optimizer, "groups": []}
        return masked_step(model, optimizer, 0.1), parts

    def packed(density: float) -> tuple[Step, dict[str, Any]]:
        model = BPR(rows, columns)
        handle = sparsify(model, density, groups="joint", update_ratio=0)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        handle.attach(optimizer)
        parts = {"model": model, "optimizer": optimizer, "groups": handle.groups}
        return plain_step(model, optimizer), parts

    built: dict[str, Callable[[], tuple[Step, dict[str, Any]]]] = {
        "RecBole dense": lambda: dense(False),
        "dense, fused Adam": lambda: dense(True),
        "naive masks 0.1": masked,
    }
    for density in DENSITIES:
        built[f"packed {density}"] = lambda density=density: packed(density)
    return built


def measure(rows: int, columns: int, batch: int, rounds: int, per_round: int) -> list[dict]:
    """Time all variants in turn; returns one row per variant."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> list[Tensor]:
        return [torch.randint(rows, (batch,), generator=generator) for _ in range(3)]

    ready = {name: build() for name, build in variants(rows, columns).items()}
    times: dict[str, list[float]] = {name: [] for name in ready}
    for step, _ in ready.values():
        step(*draw())
    gc.collect()
    for _ in range(rounds):
        for name, (step, _) in ready.items():
            for position in range(per_round + 1):
                triple = draw()
                started = perf_counter()
                step(*triple)
                if position:  # the first step of a turn finds the caches of another variant
                    times[name].append(perf_counter() - started)
    base = statistics.median(times["RecBole dense"])
    result = []
    for name, (_, parts) in ready.items():
        median = statistics.median(times[name])
        held = held_bytes(parts["model"], parts["optimizer"])
        result.append(
            {
                "variant": name,
                "median_ms": round(median * 1e3, 3),
                "min_ms": round(min(times[name]) * 1e3, 3),
                "times_faster": round(base / median, 1),
                "held_bytes": sum(held.values()),
                **held,
            }
        )
    return result


def main() -> None:
    """Measure, print a table, write JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--columns", type=int, default=64)
    options.add_argument("--batch", type=int, default=2048)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--per-round", type=int, default=5)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = measure(chosen.rows, chosen.columns, chosen.batch, chosen.rounds, chosen.per_round)
    print("| variant | median ms | × faster than RecBole | MB held |\n|---|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['variant']} | {row['median_ms']} | {row['times_faster']} | {row['held_bytes'] / 1e6:.1f} |"
        )
    if chosen.out:
        setting = {k: v for k, v in vars(chosen).items() if k != "out"}
        told = {**provenance(), "seed": 0, "setting": setting, "rows": rows}
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
