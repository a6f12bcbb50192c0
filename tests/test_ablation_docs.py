"""The pages of the ablation are what the generator makes of the committed cells."""

from __future__ import annotations

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
