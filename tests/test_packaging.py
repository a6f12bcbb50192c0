"""The package finds its files wherever it is installed, and the wheel holds all of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from recbole_dsl import resources
from recbole_dsl.errors import DSLError

ROOT = Path(__file__).resolve().parents[1]
PRINT_FOLDER = "from recbole_dsl.resources import properties_dir; print(properties_dir())"


def python(code: str, cwd: Path, *, path: Path | None = None) -> str:
    """Run code in another folder and return what it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=cwd, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def property_names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")}


def test_checkout(tmp_path: Path) -> None:
    assert resources.properties_dir() == ROOT / "properties"
    assert Path(python(PRINT_FOLDER, tmp_path, path=ROOT)) == ROOT / "properties"
    assert "overall.yaml" in property_names(resources.properties_dir())


def test_missing_properties_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "package" / "resources.py"))
    with pytest.raises(DSLError, match="missing"):
        resources.properties_dir()


def test_wheel_holds_every_file(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    paths = [path for path in (ROOT / "recbole_dsl").rglob("*") if path.is_file()]
    code = {path.relative_to(ROOT).as_posix() for path in paths if path.parent.name != "__pycache__"}
    assert {f"recbole_dsl/{name}" for name in ("py.typed", "support.json", "serving/page.html")} <= code
    yaml = {f"recbole_dsl/properties/{name}" for name in property_names(ROOT / "properties")}
    assert yaml
    assert code | yaml <= held, "list new packages under [tool.setuptools] in pyproject.toml"
    assert not [name for name in held if name.startswith(("tests", "properties", "benchmarks"))]


def test_wheel_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "properties").mkdir(parents=True)
    found = Path(python(PRINT_FOLDER, elsewhere, path=site))
    assert found == (site / "recbole_dsl" / "properties").resolve()
    assert property_names(found) == property_names(ROOT / "properties")


def test_wheel_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    held = archive.namelist()

    def text(name: str) -> str:
        return archive.read(next(n for n in held if n.endswith(name))).decode()

    assert "recbole-dsl = recbole_dsl.cli:main" in text("entry_points.txt")
    assert any(name.endswith("LICENSE") for name in held)
    described = text("METADATA")
    assert re.search(
        r"""^Requires-Dist: recbole==1\.2\.1; python_version < ["']3\.12["']""",
        described,
        re.MULTILINE,
    )
    assert "Requires-Dist: ray" not in described


def test_every_requirement_of_recbole_but_ray_is_ours(wheel: Path) -> None:
    """From Python 3.12 on RecBole comes without its requirements, so ours have to cover them."""

    def names(lines: list[str]) -> set[str]:
        return {re.match(r"[\w.-]+", line)[0].lower() for line in lines if "extra ==" not in line}

    archive = zipfile.ZipFile(wheel)
    name = next(n for n in archive.namelist() if n.endswith("METADATA"))
    lines = archive.read(name).decode().splitlines()
    prefix = "Requires-Dist: "
    ours = names([line.removeprefix(prefix) for line in lines if line.startswith(prefix)])
    assert names(metadata.requires("recbole") or []) - ours == {"ray"}
