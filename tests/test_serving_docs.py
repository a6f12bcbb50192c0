"""docs/serving.md is what the generator makes of the committed results, and the results hold what was asked."""

from __future__ import annotations

import json

from benchmarks import serving_docs
from benchmarks.journal import Journal
from benchmarks.speed_docs import MARKED, MISSING
from recbole_dsl.serving import models


def test_the_page_is_the_generated_one() -> None:
    """Edits by hand between the markers, or results that have changed since, show up here."""
    text = serving_docs.DOCS.read_text(encoding="utf-8")
    assert text == serving_docs.page(text) and MISSING not in text
    assert [found[2] for found in MARKED.finditer(text)] == list(serving_docs.SECTIONS)


def test_the_page_names_every_model_that_numpy_scores() -> None:
    """And the number of all that are served."""
    text = serving_docs.DOCS.read_text(encoding="utf-8")
    assert all(name in text for name in models.VECTORS)
    assert f"each of the {len(models.VECTORS) + len(models.BY_RECBOLE)} models" in text


def test_results_of_artifacts() -> None:
    """float32 loses nothing; shares of the dense tables at density 0.1 and 64 columns."""
    lines = Journal(serving_docs.RESULTS / "artifacts.jsonl").lines()
    cells = {(line["cell"]["model"], line["cell"]["dataset"]): line["result"]["values"] for line in lines}
    assert {m for m, d in cells if d == "ml-100k"} == {
        "BPR", "LightGCN", "NGCF", "SimpleX", "NeuMF", "MultiVAE", "SASRec",
    }  # fmt: skip
    assert {m for m, d in cells if d == "gowalla"} == {"BPR", "LightGCN"}
    assert all(values["fp32"]["largest_difference"] <= 1e-6 for values in cells.values())
    for model in ("BPR", "LightGCN"):
        values = cells[model, "gowalla"]
        assert values["fp32"]["of_dense_fp32"] <= 0.145 and values["int8"]["of_dense_fp32"] <= 0.065


def test_results_of_serving() -> None:
    """A trained topology, all sizes, and layouts as small as they were to be."""
    told = json.loads((serving_docs.RESULTS / "serving.json").read_text(encoding="utf-8"))
    assert "-dirty" not in told["commit"] and told["environment"]["threads"] == 1
    assert [result["items"] for result in told["results"]] == [10**5, 10**6, 10**7]
    for result in told["results"]:
        memory, training = result["memory"], result["training"]
        assert memory["rows, share"] <= 0.15 and memory["inverted index, share"] <= 0.21
        assert training["updates"] >= 10
        assert (
            training["live_per_item_of_the_fullest_tenth"]
            > 1.5 * training["live_per_item_of_the_emptiest_tenth"]
        )
