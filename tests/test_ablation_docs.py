"""docs/ablation.md is what the generator makes of the committed cells."""

from __future__ import annotations

from benchmarks import ablation_docs, speed_docs


def test_the_page_is_the_generated_one() -> None:
    """With a table for every study."""
    text = ablation_docs.DOCS.read_text(encoding="utf-8")
    assert text == speed_docs.page(text, ablation_docs.SECTIONS)
    assert [found[2] for found in speed_docs.MARKED.finditer(text)] == list(ablation_docs.SECTIONS)
    assert speed_docs.MISSING not in text


def test_the_base_is_one() -> None:
    """Divided by itself, and never tested against itself."""
    for beginning in ablation_docs.STUDIES.values():
        (line,) = [x for x in ablation_docs.study(beginning).splitlines() if x.startswith("| base |")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[2] == cells[5] == "1.000" and cells[3] == cells[6] == "–"
