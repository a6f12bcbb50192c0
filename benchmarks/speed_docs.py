"""Write the tables of docs/speed.md from the JSON files of the benchmarks.

    python -m benchmarks.speed_docs

What stands between ``<!-- table: NAME -->`` and ``<!-- end -->`` is replaced; the text around is kept.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.journal import Journal
from benchmarks.scaling import BATCHES, fits, latest_points

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs/speed.md"
RESULTS = ROOT / "benchmarks/results"
MARKED = re.compile(r"(<!-- table: ([a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
MISSING = "*Not measured yet.*"

Line = dict[str, Any]


# --- Markdown -------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A Markdown table whose first ``words`` columns are text and the others numbers."""
    bar = "|" + "---|" * words + "---:|" * (len(head) - words)
    return "\n".join(["| " + " | ".join(head) + " |", bar, *("| " + " | ".join(row) + " |" for row in rows)])


def figure(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, and a dash for none."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def megabytes(value: float | None) -> str:
    """MB, 10⁶ bytes."""
    return figure(None if value is None else value / 1e6)


def ran_on(line: Line) -> str:
    """Where a line was measured, in words."""
    stack = line["environment"]
    versions = ", ".join(f"{name} {stack[name]}" for name in ("python", "torch", "numpy") if stack.get(name))
    threads = stack["threads"]
    name = line.get("device") or line["processor"]
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}, {versions}, commit `{line['commit']}`"


# --- whole models ---------------------------------------------------------------------------------


class Measured:
    """The newest results of ``speed.jsonl`` on one device: those of each model's and dataset's last commit."""

    def __init__(self, lines: Sequence[Line]) -> None:
        newest = {self._pair(line): line["commit"] for line in lines}
        self.lines = [line for line in lines if line["commit"] == newest[self._pair(line)]]
        self.pairs = list(newest)
        found = {line["cell"]["variant"]: None for line in self.lines}
        self.variants = sorted(found, key=_order)

    @staticmethod
    def _pair(line: Line) -> tuple[str, str]:
        return line["cell"]["model"], line["cell"]["dataset"]

    def of(self, pair: tuple[str, str], variant: str) -> list[dict[str, Any]]:
        """The results of all rounds."""
        cell = {"model": pair[0], "dataset": pair[1], "variant": variant}
        return [line["result"] for line in self.lines if line["cell"] == cell]

    def value(self, pair: tuple[str, str], variant: str, *names: str) -> float | None:
        """The middle of a figure's rounds; None if it was not measured."""
        found = []
        for result in self.of(pair, variant):
            for name in names:
                result = result.get(name) if isinstance(result, dict) else None
            if result is not None:
                found.append(result)
        return statistics.median(found) if found else None

    def epoch(self, pair: tuple[str, str], variant: str) -> str:
        """Seconds, from a whole epoch if there is one; ``~``: steps times the step."""
        results = self.of(pair, variant)
        whole = [r["epoch_s"] for r in results if r["epoch_measured"]]
        if whole:
            return figure(statistics.median(whole))
        return "~" + figure(statistics.median(r["epoch_s"] for r in results)) if results else "–"

    def times_faster(self, pair: tuple[str, str], slow: str, fast: str) -> float | None:
        """Ratio of steps with their updates: the middle of the rounds' ratios, since machines drift."""
        a, b = (self.by_round(pair, v, "step_with_updates_s") for v in (slow, fast))
        return statistics.median(a[r] / b[r] for r in a.keys() & b.keys()) if a.keys() & b.keys() else None

    def by_round(self, pair: tuple[str, str], variant: str, name: str) -> dict[int, float]:
        """A figure of every round."""
        cell = {"model": pair[0], "dataset": pair[1], "variant": variant}
        return {line["round"]: line["result"][name] for line in self.lines if line["cell"] == cell}

    def rows(self, cells: Callable[[tuple[str, str]], list[str]]) -> list[list[str]]:
        """A row for each model and dataset."""
        return [[f"{model}, {dataset}", *cells((model, dataset))] for model, dataset in self.pairs]


def _order(variant: str) -> tuple[int, float]:
    """RecBole, naive masks, ours at density 1, then packed by falling density."""
    known = ["recbole", "naive", "ours 1.0"]
    return (known.index(variant), 0.0) if variant in known else (len(known), -float(variant.split()[-1]))


def by_device(name: str, section: Callable[[Measured], str]) -> str:
    """A section for every device of ``speed.jsonl``, each headed by what it ran on."""
    lines = Journal(RESULTS / name).lines()
    parts = []
    for device in dict.fromkeys(line["device"] for line in lines):
        mine = Measured([line for line in lines if line["device"] == device])
        heads = dict.fromkeys(ran_on(line) for line in mine.lines)
        parts += ["On " + "; ".join(heads) + ":", section(mine)]
    return "\n\n".join(parts) or MISSING


def steps(measured: Measured) -> str:
    """Milliseconds of RecBole's step, its loader's share, and how many times faster the others are."""
    others = [v for v in measured.variants if v != "recbole"]

    def cells(pair: tuple[str, str]) -> list[str]:
        step, load = (measured.value(pair, "recbole", name) for name in ("step_s", "load_s"))
        ratios = [measured.times_faster(pair, "recbole", v) for v in others]
        known = [None if x is None else x * 1e3 for x in (step, load)]
        rounds = len(measured.by_round(pair, "recbole", "step_s"))
        return [*map(figure, known), *map(figure, ratios), str(rounds)]

    told = table(["model, dataset", "RecBole ms", "of it loading ms", *others, "rounds"], measured.rows(cells))
    least = min(line["result"]["core_share"] for line in measured.lines)
    return f"{told}\n\nThe steps had {least:.0%} of a core or more: below 100 % others were at work meanwhile."


def epochs(measured: Measured) -> str:
    """Seconds of an epoch."""
    rows = measured.rows(lambda pair: [measured.epoch(pair, v) for v in measured.variants])
    return table(["model, dataset", *measured.variants], rows)


def split(measured: Measured) -> str:
    """Density 1 against RecBole, and packed against our density 1."""
    packed = [v for v in measured.variants if v.startswith("packed")]

    def cells(pair: tuple[str, str]) -> list[str]:
        engineering = measured.times_faster(pair, "recbole", "ours 1.0")
        return [figure(engineering), *(figure(measured.times_faster(pair, "ours 1.0", v)) for v in packed)]

    head = ["model, dataset", "engineering", *(f"sparsity, {v}" for v in packed)]
    return table(head, measured.rows(cells))


def memory(measured: Measured) -> str:
    """Bytes of the training state, of the growth window, and peaks."""
    some = [v for v in measured.variants if v in ("recbole", "naive", "ours 1.0", "packed 0.1")]

    def cells(pair: tuple[str, str]) -> list[str]:
        held = [megabytes(measured.value(pair, v, "held_bytes")) for v in measured.variants]
        growth = megabytes(measured.value(pair, "packed 0.1", "growth_bytes"))
        return [*held, growth]

    def peaks(pair: tuple[str, str]) -> list[str]:
        kinds = ("peak_training_bytes", "peak_process_bytes", "peak_device_bytes")
        each = [[measured.value(pair, v, kind) for v in some] for kind in kinds]
        return [megabytes(value) for values in each[: 3 if any(each[2]) else 2] for value in values]

    kinds = ["training", "process"]
    if any(measured.value(p, v, "peak_device_bytes") for p in measured.pairs for v in some):
        kinds.append("GPU")
    head = ["model, dataset", *(f"{kind}: {v}" for kind in kinds for v in some)]
    state = ["model, dataset", *measured.variants, "growth window, packed 0.1"]
    return (
        "Training state between steps, MB (weights, index or masks, gradients, optimizer state):\n\n"
        + table(state, measured.rows(cells))
        + "\n\nPeaks, MB:\n\n"
        + table(head, measured.rows(peaks))
    )


def updates(measured: Measured) -> str:
    """Milliseconds of an update, the steps between two, and its share of the step's time."""
    packed = [v for v in measured.variants if v.startswith("packed")]

    def cell(pair: tuple[str, str], variant: str) -> str:
        seconds = measured.value(pair, variant, "updates", "update_s")
        step, all_in = (measured.value(pair, variant, k) for k in ("step_s", "step_with_updates_s"))
        if seconds is None or not step or not all_in:
            return "–"
        return f"{figure(seconds * 1e3)} ({(all_in - step) / all_in:.1%})"

    def cells(pair: tuple[str, str]) -> list[str]:
        between = [
            r["updates"]["update_interval"] for v in packed for r in measured.of(pair, v) if r["updates"]
        ]
        return [str(min(between[0])) if between else "–", *(cell(pair, v) for v in packed)]

    return table(["model, dataset", "ΔT", *packed], measured.rows(cells))


# --- the BPR step ---------------------------------------------------------------------------------


def bpr() -> str:
    """The table of ``bpr_step.json`` with its criterion, which is asked of a processor's core, and a GPU's."""
    paths = [RESULTS / "bpr_step.json", RESULTS / "bpr_step_gpu.json"]
    told = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    return "\n\n".join(_bpr(one) for one in told if "criterion" in one) or MISSING


def _bpr(told: dict[str, Any]) -> str:
    rows = [
        [
            r["variant"],
            *(
                figure(r.get(key))
                for key in ("median_ms", "outside_ms", "inside_ms", "update_ms", "times_faster")
            ),
            megabytes(r["held_bytes"] or None),
            megabytes(r.get("growth_bytes")),
        ]
        for r in told["rows"]
    ]
    head = [
        "variant",
        "step ms",
        "outside",
        "inside the window",
        "update ms",
        "× faster",
        "MB held",
        "window MB",
    ]
    lines = [
        [c["what"], figure(c["measured"]), f"at {c['allowed']} {c['bound']:g}", "yes" if c["met"] else "**no**"]
        for c in told["criterion"]
    ]
    asked = table(["packed 0.1", "measured", "asked", "met"], lines)
    full = "takes" if told["optimizer_is_full"] else "**does not take**"
    setting = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in told["setting"].items())
    return "\n\n".join(
        [
            f"On {ran_on(told)}; {setting}:",
            table(head, rows),
            *([] if told["environment"]["gpu"] else [asked]),
            f"The optimizer {full} all live weights along in every step.",
        ]
    )


# --- scaling --------------------------------------------------------------------------------------


def scaling(section: Callable[[list[dict[str, Any]]], str]) -> str:
    """A section for every device of ``scaling.jsonl``."""
    lines = Journal(RESULTS / "scaling.jsonl").lines()
    parts = []
    for device in dict.fromkeys(line["device"] for line in lines):
        mine = [line for line in lines if line["device"] == device]
        parts += [f"On {ran_on(mine[-1])}:", section(latest_points(mine))]
    return "\n\n".join(parts) or MISSING


def exponents(points: list[dict[str, Any]]) -> str:
    """The fits of every series."""
    rows = []
    for fit in fits(points):
        grow = fit["where_the_live_part_dominates"]
        cells = [fit["whole_range"], grow]
        told = [f"{p['exponent']:.2f} ({p['decades']:.1f} decades, {p['points']})" if p else "–" for p in cells]
        rows.append([fit["series"], fit["cost"], *told, f"{fit['off_the_line']:.0%}"])
    head = [
        "series",
        "cost",
        "exponent, whole range",
        "exponent where the live part is most of it",
        "off the line",
    ]
    return table(head, rows, words=2)


def points_table(points: list[dict[str, Any]]) -> str:
    """Every point."""
    rows = []
    for point in sorted(points, key=lambda p: (p["cell"]["variant"], p["live"])):
        cell, times = point["cell"], point["step_s"]
        name = f"{cell['variant']}, 2 × {cell['rows']:,} × {cell['columns']}"
        if cell["variant"] == "packed":
            name += f", {cell['density']:g}"
        steps = [figure(times[str(batch)] * 1e3) for batch in BATCHES]
        rows.append(
            [name, f"{point['live']:,}", *steps, figure(point["limit_s"] * 1e3), megabytes(point["held_bytes"])]
        )
    head = ["point", "live weights", *(f"step ms, batch {b}" for b in BATCHES), "limit ms", "MB held"]
    return table(head, rows)


def update_points(points: list[dict[str, Any]]) -> str:
    """Updates by size."""
    rows = []
    for point in sorted((p for p in points if p.get("update")), key=lambda p: p["live"]):
        cell, update = point["cell"], point["update"]
        rows.append(
            [
                f"2 × {cell['rows']:,} × {cell['columns']}, {cell['density']:g}",
                f"{point['live']:,}",
                figure(update["update_s"] * 1e3),
                figure(update["update_s"] / point["live"] * 1e9),
                f"{update['dropped']:,.0f}",
                f"{update['grown']:,.0f}",
                megabytes(update["growth_bytes"]),
            ]
        )
    return table(["point", "live weights", "ms", "ns per live weight", "dropped", "grown", "window MB"], rows)


# --- results of other benchmarks ------------------------------------------------------------------


def other(name: str) -> str:
    """Every list of rows in a JSON file, as a table of whatever figures they have."""
    path = RESULTS / name
    if not path.exists():
        return MISSING
    told = json.loads(path.read_text(encoding="utf-8"))
    lists = {
        key: rows for key, rows in told.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)
    }
    measured = [told] if "environment" in told else [row for rows in lists.values() for row in rows]
    parts = ["On " + "; ".join(dict.fromkeys(map(ran_on, measured))) + ":"]
    for key, rows in lists.items():
        parts += [f"**{key}**"] * (len(lists) > 1) + [_any_rows(rows)]
    return "\n\n".join(parts)


def _any_rows(told: list[dict[str, Any]]) -> str:
    shown = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in told]
    rows = [{k: v for k, v in row.items() if k not in ("commit", "processor", "device")} for row in shown]
    head = list(dict.fromkeys(key for row in rows for key in row))
    text = [k for k in head if any(isinstance(row.get(k), str) for row in rows)]
    head = text + [k for k in head if k not in text]
    cells = [[_cell(row.get(key)) for key in head] for row in rows]
    return table([k.replace("_", " ") for k in head], cells, words=len(text))


def _cell(value: Any) -> str:
    if isinstance(value, bool | str):
        return str(value)
    return figure(value, 4)


SECTIONS: dict[str, Callable[[], str]] = {
    "bpr": bpr,
    "steps": lambda: by_device("speed.jsonl", steps),
    "split": lambda: by_device("speed.jsonl", split),
    "epochs": lambda: by_device("speed.jsonl", epochs),
    "memory": lambda: by_device("speed.jsonl", memory),
    "updates": lambda: by_device("speed.jsonl", updates),
    "exponents": lambda: scaling(exponents),
    "points": lambda: scaling(points_table),
    "update_points": lambda: scaling(update_points),
    "graph_product": lambda: other("graph_product.json"),
    "wide_tables": lambda: other("wide_tables.json"),
    "busy_machine": lambda: other("busy_machine.json"),
    "data_path": lambda: other("data_path.json"),
    "big_table": lambda: other("big_table.json"),
}
"""By the name in the marker."""


def page(text: str, sections: Mapping[str, Callable[[], str]] = SECTIONS) -> str:
    """``text`` with the tables between its markers made anew."""
    return MARKED.sub(lambda found: f"{found[1]}\n{sections[found[2]]()}\n\n{found[3]}", text)


def main() -> None:
    """Write the page."""
    DOCS.write_text(page(DOCS.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
