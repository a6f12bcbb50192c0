"""Imports run downwards only, and the core works where RecBole is not installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import recbole_dsl

PACKAGE = Path(recbole_dsl.__file__).parent
# A part may import parts of its own or a lower level.
LEVELS: list[set[str]] = [
    {"errors", "files", "resources", "compiling", "kernels", "plain", "tensor_file", "locks"},
    {"quantities", "graph", "sparsity", "property_files", "recbole_names", "stages", "downloading"},
    {"packed", "settings", "recbole_settings", "command_line", "planning"},
    {"handle", "compat", "config", "plan_command", "neumf"},
    {"training", "serving", "costs", "results", "support"},
    {"experiment"},
    {"compare", "launching", "loading", "to_recbole", "models_command"},
    {"exporting"},
    {
        "train_command",
        "compare_command",
        "tune_command",
        "report_command",
        "export_command",
        "inspect_command",
        "recommend_command",
        "serve_command",
        "vectors_command",
    },
    {"cli"},
]
WITHOUT_RECBOLE = [
    "graph", "kernels", "sparsity", "packed", "handle", "settings", "errors", "quantities", "property_files",
    "resources", "planning", "plan_command",
]  # fmt: skip


def part_of(path: Path) -> str:
    """The first name below the package: ``sparsity`` for ``sparsity/scores.py``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files_of(part: str) -> list[Path]:
    """All files of a part; there is at least one."""
    files = [p for p in PACKAGE.rglob("*.py") if part_of(p) == part]
    assert files, f"no file belongs to {part}"
    return files


def imports(path: Path) -> set[str]:
    """Full names of everything a file imports anywhere, relative imports resolved."""
    home = ("recbole_dsl", *path.relative_to(PACKAGE).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(home[: len(home) - node.level + 1]) if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{name}.{alias.name}" for alias in node.names}
    return found


def parts_imported(path: Path) -> set[str]:
    """Parts of this package that a file imports."""
    names = [n.split(".") for n in imports(path)]
    return {n[1] for n in names if n[0] == "recbole_dsl" and len(n) > 1}


def level(part: str) -> int:
    """Height of a part."""
    heights = [i for i, parts in enumerate(LEVELS) if part in parts]
    assert heights, f"recbole_dsl/{part} has no level: add it to LEVELS"
    return heights[0]


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    """No file imports a part that lies above its own."""
    known = {part_of(p) for p in FILES}
    upwards = {part for part in parts_imported(path) & known if level(part) > level(part_of(path))}
    assert not upwards


@pytest.mark.parametrize("path", files_of("sparsity"), ids=lambda p: p.name)
def test_the_theory_stands_alone(path: Path) -> None:
    """sparsity imports errors, compiled loops and itself, nothing else of the package."""
    assert parts_imported(path) <= {"errors", "kernels", "sparsity"}


@pytest.mark.parametrize("path", files_of("packed"), ids=lambda p: p.name)
def test_storage_knows_only_the_theory(path: Path) -> None:
    """packed imports sparsity, graph, kernels and errors."""
    assert parts_imported(path) <= {"errors", "sparsity", "graph", "packed", "kernels"}


@pytest.mark.parametrize("part", WITHOUT_RECBOLE)
def test_the_core_never_names_recbole(part: str) -> None:
    """Not even inside a function."""
    for path in files_of(part):
        assert not [n for n in imports(path) if n.split(".")[0] == "recbole"], path


def test_nothing_imports_the_command_line() -> None:
    """cli, experiment and compare are on top; below them nothing imports cli or experiment."""
    for path in FILES:
        above = parts_imported(path) & {"cli", "experiment"}
        if level(part_of(path)) <= level("training"):
            assert not above, path


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_sparsify_works_where_recbole_cannot_be_imported() -> None:
    """A training with an update in an interpreter in which ``import recbole`` fails."""
    code = """
import sys
sys.modules["recbole"] = None  # makes any import of it raise
import torch
from recbole_dsl import masks, sparsify
model = torch.nn.Embedding(30, 8)
handle = sparsify(model, 0.2, include=["weight"], update_interval=1)
optimizer = torch.optim.Adam(model.parameters())
handle.attach(optimizer)
model(torch.tensor([1, 2])).pow(2).sum().backward()
optimizer.step()
assert handle.explorer.updates == 1 and int(masks(model)["weight"].sum()) == handle.budget == 48
print("trained")
"""
    assert run_python(code) == "trained"


def test_settings_need_no_torch() -> None:
    """Settings can be checked, and errors told, before torch is loaded."""
    code = """
import sys
from recbole_dsl.settings import DSLConfig
DSLConfig.from_config({"dsl_density": 0.2})
print("torch" in sys.modules, "recbole" in sys.modules)
"""
    assert run_python(code) == "False False"


NEEDS_MORE = {"by_recbole.py", "models.py", "on_device.py", "web.py"}


@pytest.mark.parametrize(
    "path",
    [
        *(p for p in files_of("serving") if p.name not in NEEDS_MORE),
        *(PACKAGE / f"{name}.py" for name in ("cli", "compiling", "errors", "files", "command_line")),
        *(PACKAGE / f"{name}_command.py" for name in ("inspect", "recommend", "vectors", "serve")),
    ],
    ids=lambda p: p.name,
)
def test_serving_needs_numpy_and_safetensors(path: Path) -> None:
    """Whatever else a file names, it imports where it may be missing, inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tops = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [a.name for n in tops if isinstance(n, ast.Import) for a in n.names]
    names += [n.module or "" for n in tops if isinstance(n, ast.ImportFrom) and not n.level]
    outside = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"recbole_dsl"}
    assert outside <= {"numpy", "safetensors"}
