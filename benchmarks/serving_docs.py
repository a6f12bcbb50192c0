"""Write the tables of docs/serving.md from the JSON files of the benchmarks.

python -m benchmarks.serving_docs
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks import speed_docs
from benchmarks.journal import Journal
from benchmarks.speed_docs import MISSING, RESULTS, ROOT, figure, ran_on, table

DOCS = ROOT / "docs/serving.md"


def _serving() -> dict[str, Any] | None:
    path = RESULTS / "serving.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def latency() -> str:
    """A table for each case: variants by numbers of items."""
    told = _serving()
    if told is None:
        return MISSING
    sizes = [result["items"] for result in told["results"]]
    parts = [ran_on(told) + "."]
    for number, case in enumerate(told["results"][0]["cases"]):
        rows = []
        for variant in [row["variant"] for row in case["rows"]]:
            cells = [variant]
            for result in told["results"]:
                row = next(r for r in result["cases"][number]["rows"] if r["variant"] == variant)
                cells += [figure(row["p50_ms"]), figure(row["p99_ms"]), figure(row["users_per_second"])]
            rows.append(cells)
        head = [case["case"]] + [f"{what}, {n:,}" for n in sizes for what in ("p50 ms", "p99 ms", "users/s")]
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def ratios() -> str:
    """How many times faster than each dense variant a single sparse user is answered."""
    told = _serving()
    if told is None:
        return MISSING
    rows = []
    for result in told["results"]:
        ours, _, *others = result["cases"][0]["rows"]  # the second is ours without numba
        fastest = max(other["users_per_second"] for other in others)
        times = [other["p50_ms"] / ours["p50_ms"] for other in others]
        cells = [figure(ours["p50_ms"]), *map(figure, times), figure(ours["users_per_second"] / fastest)]
        rows.append([f"{result['items']:,}", *cells])
    names = [f"× faster than {row['variant']}" for row in told["results"][0]["cases"][0]["rows"][2:]]
    return table(["items", "ours, p50 ms", *names, "256 users: × the fastest dense"], rows, 0)


def memory() -> str:
    """Bytes of the layouts in memory."""
    told = _serving()
    if told is None:
        return MISSING
    rows = [
        [
            f"{result['items']:,}",
            figure(result["memory"]["dense_bytes"] / 1e6),
            f"{result['memory']['rows, share']:.4f}",
            f"{result['memory']['inverted index, share']:.4f}",
            str(result["training"]["live_per_item_of_the_fullest_tenth"]),
            str(result["training"]["live_per_item_of_the_emptiest_tenth"]),
            f"{result['training']['steps']:,}, {result['training']['updates']}",
        ]
        for result in told["results"]
    ]
    head = [
        "items", "dense MB", "rows / dense", "inverted index / dense", "live, fullest tenth",
        "live, emptiest tenth", "training steps, updates",
    ]  # fmt: skip
    return table(head, rows, 0)


def artifacts() -> str:
    """Sizes and metrics of artifacts."""
    lines = Journal(RESULTS / "artifacts.jsonl").lines()
    if not lines:
        return MISSING
    rows = []
    for line in lines:
        cell, result = line["cell"], line["result"]
        for values, row in result["values"].items():
            names = [name for name in row["trained"] if name in ("recall@20", "ndcg@20")]
            rows.append(
                [
                    cell["model"], cell["dataset"], values,
                    f"{row['of_dense_fp32']:.4f}", f"{row['all_files']:,}",
                    *(f"{row['trained'][name]:.5f}" for name in names),
                    *(f"{row['artifact'][name]:.5f}" for name in names),
                    f"{row['largest_difference']:.0e}" if row["largest_difference"] else "0",
                ]
            )  # fmt: skip
    head = [
        "model", "dataset", "values", "weights file / dense fp32", "all files, bytes", "recall@20 trained",
        "ndcg@20 trained", "recall@20 artifact", "ndcg@20 artifact", "largest difference",
    ]  # fmt: skip
    return f"{'; '.join(dict.fromkeys(map(ran_on, lines)))}.\n\n{table(head, rows, 3)}"


SECTIONS: dict[str, Callable[[], str]] = {
    "artifacts": artifacts,
    "ratios": ratios,
    "latency": latency,
    "memory": memory,
}
"""By the name in the marker."""


def page(text: str) -> str:
    """``text`` with the tables between its markers made anew."""
    return speed_docs.page(text, SECTIONS)


def main() -> None:
    """Write the page."""
    DOCS.write_text(page(DOCS.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
