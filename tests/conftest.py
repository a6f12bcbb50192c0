"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_data import write_tiny


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole writes logs into the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated dataset."""
    return write_tiny(tmp_path_factory.mktemp("data"))
