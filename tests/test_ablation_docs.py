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
    """As the study's own table tells it, without scores; no base."""
    rows = [
        [cell.strip() for cell in x.strip("|").split("|")] for x in ablation_docs.summary().splitlines()[2:]
    ]
    told = []
    for name in ablation_docs.TODAY:
        lines = ablation_docs.study(ablation_docs.STUDIES[name]).splitlines()[4:]
        cells = [[cell.strip() for cell in x.strip("|").split("|")] for x in lines]
        told += [[c[0], *c[2:4], *c[5:7]] for c in cells if c[0] != "base"]
    assert [row[3:] for row in rows] == told and len(told) > 15


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
