"""Train tables that dense training has no room for, and assert the peak of resident memory.

    python benchmarks/big_table.py --out benchmarks/results/big_table.json

Two tables of 20 million rows × 64 columns each at density 0.05, fused Adam, a BPR loss on random ids, two
updates with a sampled share of the rows; one process for every way to grow. Dense, their weights, gradients
and Adam moments take 41 GB.

The bound: what the process held before, what training holds between its steps (weights, index, gradients,
Adam's moments, exploration record, growth scores), for the update once more the bytes of the live weights,
and 256 MB for blocks, batches and what the allocator keeps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.bpr_model import BPR  # noqa: E402
from benchmarks.provenance import provenance  # noqa: E402
from recbole_dsl import sparsify  # noqa: E402
from recbole_dsl.costs import held_bytes, peak_memory_bytes  # noqa: E402
from recbole_dsl.sparsity.explorer import UpdateEvent  # noqa: E402

CPU = torch.device("cpu")
CONSTANT = 256 * 2**20
"""Bytes for blocks, batches and the allocator, whatever the size of the tables."""


def import_what_torch_loads_late() -> None:
    """The first tensors on the meta device and the first step load about 100 MB of code."""
    with torch.device("meta"):
        model = BPR(100, 100, 64)
    handle = sparsify(model, 0.1, groups="joint", update_interval=1)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    handle.attach(optimizer)
    model(*torch.zeros(3, 1, dtype=torch.int64)).backward()
    optimizer.step()


def measure(setting: argparse.Namespace) -> dict[str, Any]:
    """Create, train through ``updates`` updates and one more step, count, and assert the bound."""
    import_what_torch_loads_late()
    before = peak_memory_bytes(CPU)
    started = perf_counter()
    with torch.device("meta"):
        model = BPR(setting.rows // 2, setting.rows - setting.rows // 2, setting.columns)
    events: list[UpdateEvent] = []
    handle = sparsify(
        model, setting.density, groups="joint", grow=setting.grow, growth_rows=setting.growth_rows,
        growth_memory=None, update_interval=setting.interval, seed=setting.seed,
        on_update=events.append,
    )  # fmt: skip
    created = perf_counter() - started
    peak_at_creation = peak_memory_bytes(CPU)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    handle.attach(optimizer)
    generator = torch.Generator().manual_seed(setting.seed)
    exchanged, steps, updates = 0, [], []
    for step in range(1, setting.interval * setting.updates + 2):
        columns = [model.user_embedding, model.item_embedding, model.item_embedding]
        batch = [torch.randint(t.num_embeddings, (setting.batch,), generator=generator) for t in columns]
        is_update = step % setting.interval == 0
        started = perf_counter()
        optimizer.zero_grad()
        model(*batch).backward()
        optimizer.step()
        (updates if is_update else steps).append(perf_counter() - started)
        if is_update:  # an arrival starts at zero, which no other weight is after a step of Adam
            exchanged += handle.budget - int(handle.groups[0].live_values().count_nonzero())
    held = held_bytes(model, optimizer)
    explorer = handle.explorer
    state = sum(held.values()) + explorer.record_bytes + explorer.growth_bytes
    bound = before + state + held["weight_bytes"] + CONSTANT
    peak = peak_memory_bytes(CPU)
    assert handle.live == handle.budget and all(event.live == handle.budget for event in events)
    assert explorer.updates == setting.updates
    assert peak <= bound, f"peak of {peak} bytes, more than {bound}"
    typical = statistics.median(steps[1:])  # the first one makes the optimizer's state
    return {
        "grow": setting.grow,
        "live": handle.live,
        "budget": handle.budget,
        "positions": setting.rows * setting.columns,
        "creation_s": round(created, 2),
        "step_ms": round(1e3 * typical, 1),
        "update_s": [round(seconds - typical, 2) for seconds in updates],
        "updates": explorer.updates,
        "dropped": [event.dropped for event in events],
        "grown": [event.grown for event in events],
        "exchanged": exchanged,
        **held,
        "record_bytes": explorer.record_bytes,
        "growth_bytes": explorer.growth_bytes,
        "process_bytes": before,
        "peak_at_creation_bytes": peak_at_creation,
        "peak_bytes": peak,
        "bound_bytes": bound,
        "dense_bytes": 4 * 4 * setting.rows * setting.columns,
    }


def options() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the results of every way to grow as JSON")
    parser.add_argument("--json", action="store_true", help="print the result of one way to grow as JSON")
    parser.add_argument("--rows", type=int, default=40_000_000, help="of both tables together")
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--interval", type=int, default=4)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--growth-rows", type=float, default=0.01)
    parser.add_argument("--grow", default="accumulated_gradient")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def in_a_process_of_its_own(setting: argparse.Namespace, grow: str) -> dict[str, Any]:
    """:func:`measure` where nothing else has moved the peak before."""
    numbers = {k: v for k, v in vars(setting).items() if k not in ("out", "json", "grow")}
    flags = [text for key, value in numbers.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    command = [sys.executable, __file__, "--json", "--grow", grow, *flags]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    """Measure, print, write."""
    setting = options().parse_args()
    torch.set_num_threads(1)
    if setting.json:
        print(json.dumps(measure(setting)))
        return
    rows = [in_a_process_of_its_own(setting, grow) for grow in (setting.grow, "random")]
    print("| grown by | step ms | update s | peak GB | bound GB | dense GB |\n|---|---:|---:|---:|---:|---:|")
    for row in rows:
        gigabytes = " | ".join(f"{row[key] / 1e9:.2f}" for key in ("peak_bytes", "bound_bytes", "dense_bytes"))
        print(f"| {row['grow']} | {row['step_ms']} | {max(row['update_s'])} | {gigabytes} |")
    if setting.out:
        told = {k: v for k, v in vars(setting).items() if k not in ("out", "json", "grow")}
        setting.out.parent.mkdir(parents=True, exist_ok=True)
        setting.out.write_text(json.dumps({**provenance(), "setting": told, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
