"""Trained runs, loaded from their checkpoints, and written for RecBole's own tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.utils import get_trainer, init_seed
from recbole.utils.case_study import full_sort_topk

from benchmarks.baseline import recbole_trainer
from recbole_dsl import load_data_and_model, support
from recbole_dsl.cli import main
from recbole_dsl.errors import CheckpointError
from recbole_dsl.packed.group import PackedGroup
from recbole_dsl.training.checkpoint import read_checkpoint, write_checkpoint
from tests.model_runs import no_flags, settings_of, sparse_run
from tests.test_every_model import IN_MAKE_TEST
from tests.tiny_data import NAME

TRAINED = [row.model for row in support.rows() if row.status != support.REFUSED]
STAGED = {"S3Rec", "RaCT"}  # whose first stage has no test
DSL = {"method": "dsl", "density": 0.2, "update_interval": 3}

pytestmark = pytest.mark.usefixtures("in_folder")


def metrics(trainer: Any, test_data: Any, model_file: Path | None = None) -> dict[str, float]:
    """RecBole's evaluation, with generators in a known state."""
    init_seed(3, True)
    loads = model_file is not None
    return dict(trainer.evaluate(test_data, load_best_model=loads, model_file=model_file, show_progress=False))


def recbole_s_own(config: Any, model: Any) -> Any:
    """RecBole's trainer, which knows nothing of us."""
    with config.under_recbole_name():
        return get_trainer(config["MODEL_TYPE"], config["model"])(config, model)


@pytest.fixture
def trained(data: Path, tmp_path: Path) -> Any:
    """A function that trains a model; gives its run and the path of its best checkpoint."""

    def train(name: str, **more: Any) -> tuple[Any, Path]:
        dsl = {**DSL, **{key: more.pop(key) for key in ("storage", "width") if key in more}}
        run = sparse_run(name, {**settings_of(name, data), **more}, **dsl)
        return run, Path(run.trainer.saved_model_file)

    return train


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in IN_MAKE_TEST else pytest.mark.slow) for n in TRAINED if n not in STAGED],
)
def test_a_loaded_model_has_the_metrics_of_the_run(
    name: str, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by RecBole's own trainer; flags of this process do not matter."""
    run, file = trained(name)
    expected = metrics(run.trainer, run.data[2])
    monkeypatch.setattr(sys, "argv", ["x", "--seed=1", "--embedding_size=64"])
    config, model, _, _, _, test_data = load_data_and_model(file)
    assert metrics(recbole_s_own(config, model), test_data) == expected
    assert not model.training and any(isinstance(m, PackedGroup) for m in model.modules())


@pytest.mark.parametrize("more", [{"storage": "masked"}, {"width": 32}, {"learner": "sgd"}])
def test_every_kind_of_run_is_loaded(more: dict[str, Any], trained: Any) -> None:
    """The last checkpoint as well as the best."""
    run, file = trained("NeuMF", **more)
    expected = metrics(run.trainer, run.data[2])
    for path in (file, run.trainer.keeper.file):
        config, model, _, _, _, test_data = load_data_and_model(path)
        assert metrics(recbole_s_own(config, model), test_data) == expected


def test_settings_can_be_changed(trained: Any, data: Path, tmp_path: Path) -> None:
    """Places, for instance."""
    _, file = trained("BPR")
    config, *_ = load_data_and_model(file, topk=[7], valid_metric="MRR@7", data_path=str(data))
    assert config["topk"] == [7] and config["dsl_density"] == 0.2


def test_settings_of_a_file_run_nothing(trained: Any, tmp_path: Path) -> None:
    """RecBole would evaluate them as Python."""
    _, file = trained("BPR")
    state = read_checkpoint(file)
    state["given"]["weight_decay"] = f"__import__('os').mkdir({str(tmp_path / 'harm')!r}) or 0"
    state["given"]["dataset_save_path"] = str(tmp_path / "pickle")
    write_checkpoint(tmp_path / "evil.dsl", state)
    with pytest.raises(Exception, match="weight_decay"):
        load_data_and_model(tmp_path / "evil.dsl")
    assert not (tmp_path / "harm").exists()
    state["config"]["model"] = "os:path"
    write_checkpoint(tmp_path / "evil.dsl", state)
    with pytest.raises(
        CheckpointError, match=r"'os:path', which is not RecBole's own; allowed is to give its class"
    ):
        load_data_and_model(tmp_path / "evil.dsl")


@pytest.mark.parametrize("name", ["BPR", "LightGCN", "MultiVAE", "SASRec", "KGAT", "DeepFM", "RecVAE"])
def test_recbole_reads_the_dense_file(name: str, trained: Any, data: Path, tmp_path: Path) -> None:
    """Its trainer evaluates it to our metrics and can go on from it; dead weights are zeros."""
    run, file = trained(name)
    expected = metrics(run.trainer, run.data[2])
    out = tmp_path / "dense.pth"
    assert main(["to-recbole", str(file), "--out", str(out)]) == 0
    given = settings_of(name, data)
    if run.trainer.config["train_neg_sample_args"]["distribution"] == "none":
        given["train_neg_sample_args"] = None
    trainer, train_data, valid_data, test_data = recbole_trainer(name, NAME, given)
    assert metrics(trainer, test_data, out) == pytest.approx(expected, abs=1e-4)
    state = torch.load(out, weights_only=False)
    masks = run.trainer.sparse.masks()
    assert masks and all((state["state_dict"][key][~mask] == 0).all() for key, mask in masks.items())
    trainer.epochs = 2
    trainer.resume_checkpoint(out)
    trainer.fit(train_data, valid_data, saved=False, show_progress=False)
    assert sorted(trainer.train_loss_dict) == [1]


def test_case_studies_of_recbole_agree(trained: Any, tmp_path: Path) -> None:
    """On the sparse model and on the dense file alike."""
    _, file = trained("LightGCN")
    out = tmp_path / "dense.pth"
    assert main(["to-recbole", str(file), "--out", str(out)]) == 0
    found = []
    for _ in range(2):
        config, model, _, train_data, _, test_data = load_data_and_model(file)
        if found:
            dense = torch.load(out, weights_only=False)
            model = config.model_class(dense["config"], train_data._dataset)
            model.load_state_dict(dense["state_dict"])
            model.eval()
        users = np.array([1, 2, 3])
        found.append([part.tolist() for part in full_sort_topk(users, model, test_data, k=5)])
    assert found[0][1] == found[1][1]
    assert np.allclose(found[0][0], found[1][0], atol=1e-5)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["{file}"], "--out"),
        (["{file}", "--out", "{there}"], "exists; allowed is another name, or --force"),
        (["nowhere.dsl", "--out", "new.pth"], "no such file"),
        (["{there}", "--out", "new.pth"], "no file of recbole_dsl"),
        (["{file}", "--outt", "new.pth"], "--out"),
        (["{file}", "--out", "{there}/new.pth"], "cannot be written"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], says: str, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is written over."""
    _, file = trained("BPR")
    there = tmp_path / "there.pth"
    there.write_text("mine")
    with no_flags():
        status = main(["to-recbole", *(a.format(file=file, there=there) for a in arguments)])
    assert status == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and says in last and there.read_text() == "mine"
