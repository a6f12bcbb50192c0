"""An artifact of vectors is served where there are numpy and safetensors, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from recbole_dsl import SparseRecommender, export_artifact
from tests.model_runs import settings_of, sparse_run

VECTOR_MODELS = ("BPR", "LightGCN", "NGCF", "SimpleX", "DMF")


@pytest.fixture(scope="module")
def folders(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artifacts, one whose users have tokens and one for each encoder."""
    here, home = os.getcwd(), tmp_path_factory.mktemp("artifacts")
    os.chdir(home)
    try:
        for name in (*VECTOR_MODELS, "NeuMF"):
            settings = {**settings_of(name, data), "checkpoint_dir": str(home / "saved")}
            run = sparse_run(name, settings, method="dsl", density=0.3, update_interval=3)
            export_artifact(run.trainer.saved_model_file, home / name, values="int8", with_history=True)
    finally:
        os.chdir(here)
    return {name: home / name for name in (*VECTOR_MODELS, "NeuMF")}


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment with numpy, safetensors and this package alone."""
    home = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    for name in ("numpy", "safetensors"):
        distribution = metadata.distribution(name)
        tops = {
            path.parts[0] for path in distribution.files or () if path.parts[0] not in ("..", "__pycache__")
        }
        for top in tops:
            (site / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "-q", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    return python


def run(python: Path, code: str, *arguments: str, status: int = 0) -> str:
    """What code prints there; the repository is not in its path."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-c", code, *arguments], capture_output=True, text=True, env=environment, cwd=python.parent
    )
    assert done.returncode == status, done.stderr
    return done.stdout.strip() if status == 0 else done.stderr.strip()


COMMAND = "import sys; from recbole_dsl.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("name", VECTOR_MODELS)
def test_numpy_and_safetensors_are_enough(name: str, bare: Path, folders: dict[str, Path]) -> None:
    """The same items; nothing else is imported."""
    code = """
import sys
from recbole_dsl import SparseRecommender
recommender = SparseRecommender.load(sys.argv[1])
for user in ("u0", "u41"):
    items, scores = recommender.recommend(user, 6)
    print(*items)
print(*recommender.similar_items("i5", 3)[0])
outside = {name.partition(".")[0] for name in sys.modules}
print(sorted(outside & {"torch", "recbole", "scipy", "pandas", "yaml", "numba", "tqdm", "sklearn"}))
"""
    recommender = SparseRecommender.load(folders[name])
    expected = [" ".join(recommender.recommend(user, 6)[0]) for user in ("u0", "u41")]
    expected.append(" ".join(recommender.similar_items("i5", 3)[0]))
    assert run(bare, code, str(folders[name])).splitlines() == [*expected, "[]"]


def test_commands_work_there(bare: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    """inspect, recommend and vectors; what needs more says so in one sentence."""
    folder = str(folders["BPR"])
    assert "BPR on tiny" in run(bare, COMMAND, "inspect", folder)
    assert "user u1" in run(bare, COMMAND, "recommend", folder, "--user", "u1")
    assert "72 users" in run(bare, COMMAND, "recommend", folder, "--all", "--out", str(tmp_path / "r.csv"))
    assert "items.npz" in run(bare, COMMAND, "vectors", folder, "--to", str(tmp_path))
    for words, says in {
        ("serve", folder): "'recbole-dsl serve' needs the package",
        ("recommend", folder, "--all", "--out", str(tmp_path / "r.parquet")): "needs the package pyarrow",
        ("recommend", str(folders["NeuMF"]), "--user", "u1"): "NeuMF is scored by RecBole, which cannot be",
        ("train",): "'recbole-dsl train' needs the package",
        ("export", "x", "--to", "y"): "'recbole-dsl export' needs the package",
    }.items():
        said = run(bare, COMMAND, *words, status=2)
        assert says in said and said.startswith("error: ") and "Traceback" not in said
