"""The report of a comparison: what it shows, that a browser draws it without a network, and its tables."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import statistics
import subprocess
import urllib.parse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from recbole_dsl import RunResult
from recbole_dsl.cli import main
from recbole_dsl.compare import summary
from recbole_dsl.compare.drawing import Styles, as_plotly
from recbole_dsl.compare.figures import figures_of
from recbole_dsl.compare.grid import Cell
from recbole_dsl.compare.report import write_report
from recbole_dsl.compare.store import LISTS, read_grid
from recbole_dsl.errors import ConfigError
from recbole_dsl.results import rounded

METHODS = {"dense": [None], "narrow": [0.2, 0.1], "dsl_plus": [0.2, 0.1], "static": [0.1]}
SEEDS = (1, 2, 3)
KINDS = (
    "accuracy-bytes", "accuracy-macs", "accuracy-seconds", "learning", "alpha", "turnover", "exploration",
    "live-users", "live-items", "recall",
)  # fmt: skip


def result_of(method: str, density: float | None, seed: int) -> RunResult:
    """A made-up cell, different for every argument."""
    share = density or 1.0
    level = {"dense": 0.3, "narrow": 0.27, "dsl_plus": 0.28, "static": 0.1}[method]
    score = level * share**0.05 + seed * seed / 997
    sparse = method in ("dsl_plus", "static")
    side = {
        "rows": [10] * 10,
        "interactions": list(range(100, 0, -10)),
        "live": {"t": {"before": [6.0] * 10, "after": [9.0 - d / 2 for d in range(10)]}} if sparse else {},
    }
    updates = [
        {"group": "joint", "step": 10 * n, "ratio": 0.5 / n, "dropped": 9, "grown": 9, "regrown": n,
         "live": 100, "exploration_rate": 0.1 * n}
        for n in range(1, 5)
    ] if method == "dsl_plus" else []  # fmt: skip
    return RunResult(
        schema=2, model="BPR", dataset="d-1", method=method, seed=seed,
        best_valid_result={"ndcg@10": score}, test_result={"ndcg@10": score, "recall@10": score / 2},
        epochs_run=3,
        train_loss=[3.0, 2.0, 1.0], valid_results=[{"epoch": e, "ndcg@10": score * e / 3} for e in range(3)],
        updates=updates,
        sparsity={"live": int(1000 * share)},
        costs={
            "weight_bytes": int(4000 * share), "index_bytes": 100 if sparse else 0, 
            "training_macs": 1e9 * share,
            "training_state_bytes": int(16000 * share), "macs_per_recommended_user": 5e4 * share,
            "training_seconds": 10 * share + seed, "peak_memory_bytes": 5e8,
        },
        environment={"processor": "a <b>", "threads": 1, "torch": "2", "recbole": "1.2.1",
                     "recbole_dsl": "0", "commit": None},
        config={"valid_metric": "NDCG@10"},
        analysis={"by_popularity": {"users": side, "items": {**side, "positives": [9] * 10,
                  "recall": {"10": [0.5 - d / 40 for d in range(10)], "20": [0.6] * 10}}}},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A comparison of one's own."""
    return comparison(tmp_path)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that has its report, to look at only."""
    home = comparison(tmp_path_factory.mktemp("reported"))
    write_report(home)
    return home


def test_a_method_without_a_number_of_the_metric_has_its_other_figures(folder: Path) -> None:
    """As where its training came to no finite score."""
    for file in (folder / "cells").glob("*dsl_plus*"):
        body = json.loads(file.read_text())
        body["test_result"]["ndcg@10"] = None
        file.write_text(json.dumps(body))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "dsl_plus" in page


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"methods": ["dense"]}'])
def test_a_damaged_grid_is_refused(text: str, folder: Path) -> None:
    """In a sentence."""
    (folder / "grid.json").write_text(text)
    with pytest.raises(ConfigError, match=r"grid.json' .*; allowed is the file that"):
        write_report(folder)


def test_damaged_notes_and_foreign_cells(folder: Path) -> None:
    """A note that cannot be read is told as such; what is no cell of its name is refused."""
    (folder / "failed" / "BPR-d-1-static-0.1-1.json").write_text("{")
    assert "its note cannot be read" in write_report(folder).read_text(encoding="utf-8")
    result = result_of("static", 0.2, 1)
    file = folder / "cells" / "BPR-d-1-static-0.2-1 (copy).json"
    result.save(file)
    with pytest.raises(ConfigError, match="is not the name of its contents, static of BPR with seed 1"):
        write_report(folder)
    file.unlink()
    alone = replace(result, costs={k: v for k, v in result.costs.items() if k != "training_state_bytes"})
    alone.save(folder / "cells" / "BPR-d-1-static-0.2-1.json")
    with pytest.raises(ConfigError, match="it is of a run by itself"):
        write_report(folder)


def comparison(folder: Path) -> Path:
    """Made-up results, and a failed cell whose error has markup in it."""
    home = folder / "my & comparison"
    for name in ("cells", "failed", "cancelled"):
        (home / name).mkdir(parents=True)
    how = {
        "space": {"learning_rate": ["choice", 0.1, 0.2]},
        "trials": 2,
        "density": 0.1,
        "seed": 1,
        "metric": "ndcg@10",
    }
    grid = {
        "models": ["BPR"], "datasets": ["d-1"], "methods": list(METHODS), "densities": [0.2, 0.1],
        "seeds": list(SEEDS),
        "settings": {"epochs": "3"}, "tuned": {"how": how, "chosen": {"BPR": {}}},
    }  # fmt: skip
    (home / "grid.json").write_text(json.dumps(grid))
    for method, densities in METHODS.items():
        for density in densities:
            for seed in SEEDS:
                cell = Cell("BPR", "d-1", method, density, seed)
                result_of(method, density, seed).save(home / "cells" / f"{cell.key}.json")
    note = {"cell": {}, "error": "</script><img src=x onerror=alert(1)>"}
    (home / "failed" / "BPR-d-1-static-0.2-1.json").write_text(json.dumps(note))
    return home


def test_every_figure_is_there(reported: Path) -> None:
    """One of each kind for a model on a dataset, as PNG, as SVG and on the page; the same every time."""
    folder = reported
    text = (folder / "report.html").read_text()
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"d-1-BPR-{kind}.{suffix}" for kind in KINDS for suffix in ("png", "svg")
    }
    assert text.count("<figure>") == len(KINDS)
    for path in (folder / "figures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
    before = {path: path.read_bytes() for path in (folder / "figures").iterdir()}
    write_report(folder)
    assert all(path.read_bytes() == before[path] for path in before)


def test_the_page_tells_everything(reported: Path) -> None:
    """Methods, tuning, a link to every cell's file, and what is not finished; markup stays text."""
    folder = reported
    text = (folder / "report.html").read_text()
    body = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    links = re.findall(r"href='(cells/[^']+)'", body)
    assert len(links) == len(set(links)) == 18
    assert all((folder / html.unescape(link)).is_file() for link in links)
    assert "Tuned: 2 trials for every method (learning_rate" in body and "RecBole itself" in body
    assert "&lt;img src=x" in body and "<img" not in body and "a &lt;b&gt;" in body
    assert "my &amp; comparison" in body
    assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", body)


def test_the_tables_are_the_cells(reported: Path) -> None:
    """Means, deviations, ratios and p-values recomputed from the JSON files; best and second best marked."""
    folder = reported
    scores: dict[tuple[str, str], list[float]] = {}
    for path in sorted((folder / "cells").glob("*.json")):
        cell = json.loads(path.read_text())
        _, _, _, method, *rest = path.stem.split("-")
        scores.setdefault((method, rest[0] if len(rest) > 1 else ""), []).append(cell["test_result"]["ndcg@10"])
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert len(rows) == len(scores) == 6
    lines = (folder / "table.md").read_text().splitlines()
    for row in rows:
        mine = scores[row["method"], row["density"]]
        assert float(row["test ndcg@10"]) == statistics.fmean(mine)
        assert float(row["standard deviation"]) == statistics.stdev(mine)
        assert float(row["/ dense"]) == pytest.approx(sum(mine) / sum(scores["dense", ""]))
        told = f"{statistics.fmean(mine):.4f} ± {statistics.stdev(mine):.4f}"
        (line,) = [line for line in lines if f"| {row['method']} | {row['density']} |" in line]
        best = {"dsl_plus": "**", "narrow": "*"}.get(row["method"], "")
        assert f"| {best}{told}{best} |" in line
        for rival, density in (("dense", ""), ("narrow", row["density"])):
            theirs = scores.get((rival, density))
            value = row[f"p {rival}"]
            if theirs is None or row["method"] == rival or not row["density"]:
                assert value == ""
            elif value:
                assert float(value) == pytest.approx(stats.ttest_rel(mine, theirs).pvalue)
    latex = (folder / "table.tex").read_text()
    assert r"\textbf{" in latex and r"\underline{" in latex and r"dsl\_plus" in latex
    assert latex.count(r"\\") == len(rows) + 1


def test_names_with_signs_of_latex_and_of_addresses(tmp_path: Path) -> None:
    """They stay text in the table, and the page's links lead to the cells' files."""
    (tmp_path / "cells").mkdir()
    (tmp_path / "grid.json").write_text(
        json.dumps({**{key: ["static"] for key in LISTS}, "settings": {}, "tuned": {}})
    )
    for dataset in ("a#b%20c?", "R&D $5_{x}~^\\"):
        result = replace(result_of("static", 0.1, 1), dataset=dataset)
        result.save(tmp_path / "cells" / f"{Cell('BPR', dataset, 'static', 0.1, 1).key}.json")
    write_report(tmp_path)
    links = re.findall(r"href='(cells/[^']+)'", (tmp_path / "report.html").read_text())
    files = {str(path.relative_to(tmp_path)) for path in (tmp_path / "cells").iterdir()}
    assert {urllib.parse.unquote(urllib.parse.urlsplit(link).path) for link in links} == files
    latex = (tmp_path / "table.tex").read_text()
    assert r"a\#b\%20c?" in latex
    assert r"R\&D \$5\_\{x\}\textasciitilde{}\^{}\textbackslash{}" in latex


@pytest.mark.parametrize(
    ("value", "told"),
    [(99_990_000.0, "1.00·10^8"), (150_000_000.0, "1.50·10^8"), (99.5, "99.5"), (1234.5, "1,234"), (0.0, "0")],
)
def test_figures_of_a_table(value: float, told: str) -> None:
    """Rounding may need a digit more."""
    assert summary._figure(value) == told


def test_numbers_of_an_evaluation_have_the_decimals_that_recbole_shows() -> None:
    """GAUC is a float32, of which float() makes 0.583060622215271."""
    assert rounded({"gauc": np.float32(0.5830606), "ndcg@10": 0.25}, 7) == {"gauc": 0.5830606, "ndcg@10": 0.25}
    assert rounded(None, 4) == {}


def test_paired_tests_by_hand() -> None:
    """Only common seeds count; no value where there is nothing to test."""
    assert summary.paired_p({1: 0.3, 2: 0.5, 3: 0.4}, {1: 0.2, 2: 0.3, 9: 0.1}) == pytest.approx(
        stats.ttest_rel([0.3, 0.5], [0.2, 0.3]).pvalue
    )
    assert summary.paired_p({1: 0.3}, {1: 0.2}) is None
    assert summary.paired_p({1: 0.3, 2: 0.4}, {1: 0.2, 2: 0.3}) is None


def test_figures_show_what_the_cells_say(reported: Path) -> None:
    """Points of accuracy, of learning and of updates, taken from the results."""
    cells = summary.read_cells(reported)
    rows = summary.rows_of(cells, read_grid(reported)["methods"], "ndcg@10")
    found = {figure.key: figure for figure in figures_of(rows, cells, 0.1)}
    assert set(found) == set(KINDS)
    narrow = next(series for series in found["accuracy-bytes"].series if series.name == "narrow")
    assert narrow.x == [400, 800] and narrow.stroke == 1 and narrow.error is not None
    assert narrow.y[0] == statistics.fmean(result_of("narrow", 0.1, s).test_result["ndcg@10"] for s in SEEDS)
    assert found["accuracy-bytes"].levels.keys() == {"dense"}
    (alpha,) = found["alpha"].series
    assert alpha.x == [10, 20, 30, 40] and alpha.y == [0.5, 0.25, 0.5 / 3, 0.125]
    (turnover,) = found["turnover"].series
    assert turnover.y == [0.08, 0.07, 0.06, 0.05]
    assert {series.name for series in found["live-items"].series} == {
        f"{method}, {when}" for method in ("dsl_plus", "static") for when in ("before", "after")
    }
    assert len(found["recall"].series) == len(found["learning"].series) == 4


def test_groups_of_one_method_can_be_told_apart(reported: Path) -> None:
    """One colour, a line of its own for each."""
    cells = {
        name: replace(cell, updates=[{**event, "group": group} for event in cell.updates for group in "abc"])
        for name, cell in summary.read_cells(reported).items()
    }
    rows = summary.rows_of(cells, read_grid(reported)["methods"], "ndcg@10")
    (alpha,) = [figure for figure in figures_of(rows, cells, 0.1) if figure.key == "alpha"]
    assert [(line.name, line.stroke) for line in alpha.series] == [
        ("dsl_plus, a", 0), ("dsl_plus, b", 1), ("dsl_plus, c", 2)
    ]  # fmt: skip
    lines = as_plotly(alpha, Styles(["dense", "dsl_plus"]))["data"]
    assert [line["line"]["dash"] for line in lines] == ["solid", "dash", "dot"]


def test_a_tenth_of_the_items_without_test_interactions(folder: Path) -> None:
    """Has no recall, which is a gap in the page's figure."""
    for path in (folder / "cells").glob("*.json"):
        told = json.loads(path.read_text())
        told["analysis"]["by_popularity"]["items"]["recall"]["10"][7] = None
        path.write_text(json.dumps(told))
    write_report(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    figures = json.loads(re.findall(r"id='figures'>(.*?)</script>", text)[0])
    *_, recall = figures.values()
    assert len(recall["data"]) == 4
    for line in recall["data"]:
        assert [place for place, share in enumerate(line["y"]) if share is None] == [7]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_the_page_in_a_browser(reported: Path, tmp_path: Path) -> None:
    """Every figure is drawn, no script fails, and nothing is asked of a network."""
    page = reported / "report.html"
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'browser'}",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000", "--dump-dom",
    ]  # fmt: skip
    command = ["chromium", *flags, page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'data-errors=""' in dom and f'data-drawn="{len(KINDS)}"' in dom
    drawn = dom[dom.index("<figure>") :]
    assert drawn.count("js-plotly-plot") == len(KINDS)
    for label in ("bytes of weights and index", "most popular", "validation ndcg@10", "optimizer step"):
        assert label in drawn


BAD: list[tuple[list[str], str]] = [
    (["no-such-folder"], "is no comparison"),
    ([], "required: folder"),
    (["FOLDER", "--metric=hit@10"], "allowed are ndcg@10, recall@10"),
    (["FOLDER", "--density=0.3"], "allowed are 0.1, 0.2"),
    (["FOLDER", "--densty=0.3"], "did you mean"),
]


@pytest.mark.parametrize(("flags", "told"), BAD, ids=lambda x: " ".join(x) if isinstance(x, list) else None)
def test_bad_flags_are_one_sentence(
    flags: list[str], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and nothing is written."""
    assert main(["report", *(str(folder) if flag == "FOLDER" else flag for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and told in error
    assert not (folder / "report.html").exists()


def test_a_damaged_cell_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut, of another schema, or something else."""
    file = sorted((folder / "cells").iterdir())[0]
    for text in (file.read_text()[:50], file.read_text().replace('"schema": 2', '"schema": 1'), "[]", "{}"):
        file.write_text(text)
        assert main(["report", str(folder)]) == 2
        assert file.name in capsys.readouterr().err


def test_a_comparison_without_results(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing finished, or trials only, whose tests nobody may see."""
    for path in (folder / "cells").iterdir():
        result = RunResult.from_json(path.read_text())
        replace(result, test_result={}).save(path)
    assert main(["report", str(folder)]) == 2
    assert "has no finished cell" in capsys.readouterr().err


def test_without_matplotlib_the_page_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And it is said what is missing."""
    find = __import__("importlib.util").util.find_spec
    none: Any = lambda name, *rest: None if name == "matplotlib" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", none)
    assert main(["report", str(folder)]) == 0
    assert "matplotlib is not installed" in capsys.readouterr().out
    assert (folder / "report.html").is_file() and not (folder / "figures").exists()
