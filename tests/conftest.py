"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_dsl import compiling
from tests.tiny_data import write_tiny


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--without-numba``: as where numba is not installed, so that the torch twins are under test."""
    parser.addoption("--without-numba", action="store_true")


def pytest_configure(config: pytest.Config) -> None:
    """Hide numba before any test asks for it."""
    if config.getoption("--without-numba"):
        compiling.numba_installed = lambda: False  # type: ignore[assignment]


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole writes logs into the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated dataset."""
    return write_tiny(tmp_path_factory.mktemp("data"))
