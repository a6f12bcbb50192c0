"""Fixtures that several test files share."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_dsl import compiling
from tests.tiny_data import write_tiny

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, since setuptools leaves its traces where it builds."""
    source = tmp_path_factory.mktemp("source") / "project"
    source.mkdir()
    for name in ("recbole_dsl", "properties"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    target = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-w", target]
    result = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, source],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return next(target.glob("*.whl"))
