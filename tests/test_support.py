"""The table of models: complete, generated, the same everywhere it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recbole_dsl import support
from recbole_dsl.cli import main
from tests.support_table import DOCS, default_scope, page
from tests.test_every_model import TRAINED, models

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_page_is_the_generated_one() -> None:
    """Edits by hand, or facts that have changed since, show up here."""
    assert DOCS.read_text(encoding="utf-8") == page()


def test_the_readme_has_the_generated_count() -> None:
    """N of M models that gradients train."""
    assert f"**{support.count(support.rows())}**" in README.read_text(encoding="utf-8")


@models(TRAINED)
def test_what_is_sparse_by_default(
    name: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The table says what the model, built with RecBole's own sizes, says."""
    monkeypatch.chdir(tmp_path)
    row, found = support.rows([name])[0], default_scope(name, data)
    assert found["sparse"] == list(row.sparse) and found["share"] == row.share
    assert {tensor["storage"] for tensor in found["sparse"]} == {"packed"}


def test_rows_of_trained_models_hold_what_the_tests_allow() -> None:
    """The committed figures are of runs that passed."""
    for name in TRAINED:
        row = support.rows([name])[0]
        assert row.difference is not None and 0 <= row.difference < 1e-3 and row.updates >= 2
        assert row.storage == "packed" and 0 < row.share <= 1


def test_a_model_that_a_later_recbole_adds_is_untested(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if the facts had been written before BPR."""
    known = json.loads(support.FACTS.read_text(encoding="utf-8"))
    del known["models"]["BPR"]
    monkeypatch.setattr(support, "facts", lambda: known)
    assert support.rows(["BPR"])[0].status == support.UNTESTED
    trained = len(TRAINED)
    assert support.count(support.rows()) == f"{trained - 1} of {trained}"
    assert main(["models", "BPR"]) == 0
    assert "untested" in capsys.readouterr().out


def test_the_command_lists_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    """A line each, and the count."""
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(support.rows())]] == [r.model for r in support.rows()]
    assert lines[-1].startswith(support.count(support.rows()))


def test_the_command_shows_single_models_in_any_case(capsys: pytest.CaptureFixture[str]) -> None:
    """With notes and refusals."""
    assert main(["models", "recvae", "Pop"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 3
        and "RecVAETrainer" in lines[1] + lines[2]
        and "counts interactions" in lines[1] + lines[2]
    )


@pytest.mark.parametrize("argument, says", [("LightGNC", "did you mean 'LightGCN'"), ("--all", "'--all'")])
def test_wrong_arguments_are_one_sentence(argument: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And exit status 2."""
    assert main(["models", argument]) == 2
    error = capsys.readouterr().err
    assert says in error and "allowed" in error and error.count("\n") == 1
