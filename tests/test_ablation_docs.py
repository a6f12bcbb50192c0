"""The pages of the ablation are what the generator makes of the committed cells."""

from __future__ import annotations

import json
import statistics

from benchmarks import ablation_docs, speed_docs


def test_the_pages_are_the_generated_ones() -> None:
    """With a table for every study, in one of them."""
    found = []
    for path in ablation_docs.PAGES:
        text = path.read_text(encoding="utf-8")
        assert text == speed_docs.page(text, ablation_docs.SECTIONS)
        assert speed_docs.MISSING not in text
        found += [marked[2] for marked in speed_docs.MARKED.finditer(text)]
    assert found == list(ablation_docs.SECTIONS)


def test_the_base_is_one() -> None:
    """Divided by itself, and never tested against itself."""
    for beginning in ablation_docs.STUDIES.values():
        (line,) = [x for x in ablation_docs.study(beginning).splitlines() if x.startswith("| base |")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[2] == cells[5] == "1.000" and cells[3] == cells[6] == "–"


def test_the_summary_has_every_variant_of_today_once() -> None:
    """By the folders of the cells, without bases; and one ratio by hand."""
    lines = ablation_docs.summary().splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    folders = [
        folder.name
        for study in ("ablation", "ablation-popularity", "ablation-scored")
        for folder in (speed_docs.RESULTS / study).iterdir()
        if not folder.name.endswith("-base")
        and not (
            study == "ablation-popularity" and folder.name.startswith(("BPR-ml-1m", "LightGCN-y", "MultiVAE"))
        )  # the tail's
    ]
    assert sorted(f"{row[0]}-{row[1]}-{row[4]}" for row in rows) == sorted(folders)
    (row,) = [row for row in rows if row[4] == "positions-only"]
    means = [
        statistics.fmean(
            json.loads(path.read_text(encoding="utf-8"))["test_result"]["ndcg@10"]
            for path in (speed_docs.RESULTS / f"ablation/MultiVAE-ml-100k-{name}/cells").glob("*.json")
        )
        for name in ("positions-only", "base")
    ]
    assert row[:4] == ["MultiVAE", "ml-100k", "0.1", "0.001"] and row[7] == f"{means[0] / means[1]:.3f}"


def test_dropout_by_hand() -> None:
    """Means over seeds of the cells; what was run as it comes stands beside what dropout.sh has run."""
    lines = ablation_docs.dropout().splitlines()
    (line,) = [x for x in lines if x.startswith("| MultiVAE | ml-100k | 0.2 | dsl_plus | 0.1 |")]
    files = (speed_docs.RESULTS / "dropout/MultiVAE-ml-100k-0.2/cells").glob("*-dsl_plus-0.1-*.json")
    scores = [json.loads(file.read_text(encoding="utf-8"))["test_result"]["ndcg@10"] for file in files]
    assert len(scores) == 3 and f"| {statistics.fmean(scores):.4f} ±" in line
    beside = [x for x in lines if x.startswith("| SASRec | ml-1m-pos |")]
    assert [x.split(" | ")[2:5] for x in beside] == [
        ["0", "dsl_plus", "0.1"],
        ["0.2", "dense", ""],
        ["0.2", "dsl_plus", "0.1"],
        ["0.2", "narrow", "0.1"],
        ["0.5", "dense", ""],
    ]


def test_the_tail_by_hand() -> None:
    """Recall@10 of the third popularity tenth, of dense and as a mean over three seeds."""
    dense = speed_docs.RESULTS / "compare/BPR-ml-1m/cells/BPR-ml-1m-dense-2020.json"
    ours = speed_docs.RESULTS / "ablation-popularity/BPR-ml-1m-popularity--0.25/cells"
    lines = ablation_docs.tail().splitlines()
    (first,) = [x for x in lines if x.startswith("| all | dense |")]
    (second,) = [x for x in lines if x.startswith("| 0.1 | popularity--0.25 |")]
    files = [dense], [ours / f"BPR-ml-1m-dsl_plus-0.1-{seed}.json" for seed in (2020, 2021, 2022)]
    for line, some in zip((first, second), files, strict=True):
        runs = [json.loads(file.read_text(encoding="utf-8")) for file in some]
        third = [run["analysis"]["by_popularity"]["items"]["recall"]["10"][2] for run in runs]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[5] == f"{statistics.fmean(third):.3f}" and cells[7] == str(len(some))
