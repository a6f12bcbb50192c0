"""Models that start from a checkpoint of an earlier training: stages, and weights of other models."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recbole_dsl.errors import CheckpointError, ConfigError, DSLError, NumberError
from recbole_dsl.stages import STAGES
from recbole_dsl.training import pretraining
from recbole_dsl.training.checkpoint import read_checkpoint, write_checkpoint
from tests.model_runs import (
    Run,
    dense_run,
    difference_of_losses,
    settings_of,
    sparse_run,
    sparse_trainer_of,
)

SPARSE = {"method": "dsl", "density": 0.2, "grow": "accumulated_gradient", "update_interval": 3}


pytestmark = pytest.mark.usefixtures("in_folder")


def settings(name: str, data: Path, tmp_path: Path, **more: Any) -> dict[str, Any]:
    """Settings of a short run with checkpoints in a folder of the test's own."""
    return {**settings_of(name, data), "checkpoint_dir": str(tmp_path / "saved"), **more}


def topology(run_or_trainer: Any) -> dict[str, torch.Tensor]:
    """The masks by tensor."""
    return getattr(run_or_trainer, "trainer", run_or_trainer).sparse.masks()


def kept(trainer: Any, first: Run, pairs: dict[str, str]) -> bool:
    """Whether tensors start with the values and, as far as these are not zero, the topology of others."""
    start = Run(trainer, (None, None, None), {}).weights()
    mine, theirs = topology(trainer), first.weights()
    return all(
        torch.equal(start[here], theirs[there]) and bool(mine[here][theirs[there] != 0].all())
        for here, there in pairs.items()
    )


@pytest.mark.parametrize("name", ["RaCT", pytest.param("S3Rec", marks=pytest.mark.slow)])
def test_stages_at_density_one_are_recboles(name: str, data: Path, tmp_path: Path) -> None:
    """Every stage starts from the file of the one before: theirs from a pickle, ours from a sparse one."""
    files: dict[str, str] = {"theirs": "", "ours": ""}
    for stage in STAGES[name][1]:
        given = settings(name, data, tmp_path, train_stage=stage)
        theirs = dense_run(name, {**given, "pre_model_path": files["theirs"]})
        ours = sparse_run(name, {**given, "pre_model_path": files["ours"]}, method="dsl", density=1.0)
        assert difference_of_losses(ours.losses, theirs.losses) < 1e-3
        files = {"theirs": theirs.trainer.saved_model_file, "ours": ours.trainer.saved_model_file}
        assert files["ours"].endswith(".dsl") and Path(files["ours"]).is_file()
    assert theirs.valid and ours.valid.keys() == theirs.valid.keys()


@pytest.mark.parametrize("name", ["RaCT", pytest.param("S3Rec", marks=pytest.mark.slow)])
def test_the_topology_goes_along_from_stage_to_stage(name: str, data: Path, tmp_path: Path) -> None:
    """The last stage starts with the live weights that the first one has found, and with their values."""
    given = settings(name, data, tmp_path)
    first = sparse_run(name, given, **SPARSE)
    assert first.trainer.sparse.explorer.updates >= 2
    file, found, values = first.trainer.saved_model_file, topology(first), first.weights()
    for stage in STAGES[name][1][1:-1]:
        between = sparse_run(name, {**given, "train_stage": stage, "pre_model_path": file}, **SPARSE)
        file = between.trainer.saved_model_file
        for key in found:  # frozen in this stage
            assert torch.equal(between.weights()[key], values[key])
    last, _ = sparse_trainer_of(
        name, {**given, "train_stage": "finetune", "pre_model_path": file}, **SPARSE, seed=5
    )
    assert kept(last, first, {key: key for key in found})
    assert last.sparse.live == last.sparse.budget == first.trainer.sparse.budget


def test_pretraining_files_are_kept_apart_and_the_last_epoch_is_among_them(data: Path, tmp_path: Path) -> None:
    """RecBole writes over files of that name, and none for epochs that ``save_step`` does not divide."""
    given = settings("RaCT", data, tmp_path, pretrain_epochs=3, save_step=2)
    sparse_run("RaCT", given, **SPARSE)
    files = {path.name: path.read_bytes() for path in (tmp_path / "saved").glob("RaCT-tiny-*")}
    assert sorted(files) == ["RaCT-tiny-actor_pretrain-2.dsl", "RaCT-tiny-actor_pretrain-3.dsl"]
    again = sparse_run("RaCT", {**given, "seed": 1}, **SPARSE)
    assert Path(again.trainer.saved_model_file).name == "RaCT-tiny-actor_pretrain-3-1.dsl"
    assert all((tmp_path / "saved" / name).read_bytes() == content for name, content in files.items())


def test_the_first_process_writes_a_pretraining_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are told its name."""
    monkeypatch.setattr(pretraining, "checkpoint_state", lambda trainer, epoch: {"epoch": epoch})
    names = []
    for first in (True, False):
        trainer: Any = pretraining.SparsePretrainingMixin()
        trainer.ranks = SimpleNamespace(done_by_first=lambda do: do() if first else "told.dsl")  # noqa: B023
        trainer.config, trainer.checkpoint_dir = {"model": "RaCT", "dataset": "tiny"}, str(tmp_path)
        trainer.keeper = SimpleNamespace(last_good="there is no checkpoint")
        trainer.model = torch.nn.Linear(1, 1)
        trainer.model.train_stage = "actor_pretrain"
        trainer._save_stage(1, verbose=False)
        names.append(Path(trainer.saved_model_file).name)
    assert names == ["RaCT-tiny-actor_pretrain-2.dsl", "told.dsl"]
    trainer.model.bias.data.fill_(float("nan"))
    with pytest.raises(NumberError, match="bias holds NaN or infinite weights before the end of epoch 2"):
        trainer._save_stage(2, verbose=False)
    assert [path.name for path in tmp_path.iterdir()] == names[:1]


def test_a_pretraining_file_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves no empty file."""
    with pytest.raises(CheckpointError, match="cannot be written"):
        pretraining._write_stage(tmp_path / "missing" / "stage.dsl", {})

    def full(*_: Any) -> None:
        raise CheckpointError("full")

    monkeypatch.setattr(pretraining, "write_checkpoint", full)
    with pytest.raises(CheckpointError, match="full"):
        pretraining._write_stage(tmp_path / "stage.dsl", {})
    assert list(tmp_path.iterdir()) == []


def test_spans_of_a_stage_are_of_its_own_epochs(data: Path, tmp_path: Path) -> None:
    """``dsl_end`` in percent counts the epochs of pre-training, not ``epochs``."""
    given = settings("RaCT", data, tmp_path, pretrain_epochs=10, epochs=100)
    trainer, loaders = sparse_trainer_of("RaCT", given, **{**SPARSE, "end": "50%"})
    assert trainer.sparse.explorer.progress[0].settings.end == 5 * len(loaders[0])


CHAINS: list[tuple[str, dict[str, Any], str, dict[str, Any], dict[str, str]]] = [
    # (first model, its settings, then, its settings, {tensor of the second: tensor of the first})
    (
        "BPR", {"embedding_size": 64}, "ConvNCF", {"train_method": "after_pretrain"},
        {"user_embedding.weight": "user_embedding.weight", "item_embedding.weight": "item_embedding.weight"},
    ),
    (
        "FISM", {}, "NAIS", {},
        {"item_src_embedding.weight": "item_src_embedding.weight"},
    ),
    (
        "KD_DAGFM", {}, "KD_DAGFM", {"phase": "distillation"},
        {"token_embedding_table.embedding.weight": "token_embedding_table.embedding.weight"},
    ),
    (
        "KD_DAGFM", {}, "KD_DAGFM", {"phase": "finetuning"},
        {"token_embedding_table.embedding.weight": "token_embedding_table.embedding.weight"},
    ),
]  # fmt: skip
PATH_KEYS = {"ConvNCF": "pre_model_path", "NAIS": "pretrain_path", "KD_DAGFM": "warm_up"}


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "-".join([chain[0], chain[2], *chain[3].values()]))
def test_a_model_starts_from_a_sparse_checkpoint_of_another(chain: Any, data: Path, tmp_path: Path) -> None:
    """RecBole's own ways to use a trained model for the start of another take our files, too."""
    first, its, then, more, pairs = chain
    run = sparse_run(first, settings(first, data, tmp_path, **its), **SPARSE, init="random")
    paths = {PATH_KEYS[then]: run.trainer.saved_model_file}
    saved = read_checkpoint(run.trainer.saved_model_file)
    assert not any(name in saved["state_dict"] for name in pairs.values())  # it holds live weights only
    trainer, loaders = sparse_trainer_of(then, settings(then, data, tmp_path, **more, **paths), **SPARSE)
    assert kept(trainer, run, pairs) and trainer.sparse.inherited
    trainer.fit(*loaders[:2], show_progress=False)
    assert trainer.sparse.live == trainer.sparse.budget


def test_neumf_starts_from_its_two_parts(data: Path, tmp_path: Path) -> None:
    """Each trained on its own, its tables sparse."""
    tables = {"mf": ["user_mf_embedding.weight", "item_mf_embedding.weight"]}
    tables["mlp"] = [name.replace("_mf_", "_mlp_") for name in tables["mf"]]
    parts = {}
    for part, other in (("mf", "mlp"), ("mlp", "mf")):
        given = settings("NeuMF", data, tmp_path, **{f"{other}_train": False})
        parts[part] = sparse_run("NeuMF", given, **SPARSE, include=tables[part])
    paths = {f"{part}_pretrain_path": run.trainer.saved_model_file for part, run in parts.items()}
    both = settings("NeuMF", data, tmp_path, use_pretrain=True, **paths)
    trainer, _ = sparse_trainer_of("NeuMF", both, **SPARSE, include=tables["mf"] + tables["mlp"], groups=tables)
    for part, run in parts.items():
        assert kept(trainer, run, {name: name for name in tables[part]})


def test_values_of_a_dense_file_are_not_replaced_by_factors(data: Path, tmp_path: Path) -> None:
    """The topology is that of the factors, the values are the file's, though dsl_plus has its own."""
    given = settings("BPR", data, tmp_path, embedding_size=64)
    first = sparse_run("BPR", given, method="dense")
    then = settings("ConvNCF", data, tmp_path, train_method="after_pretrain")
    then["pre_model_path"] = first.trainer.saved_model_file
    trainer, _ = sparse_trainer_of("ConvNCF", then, density=0.2)
    assert (trainer.dsl.init, trainer.dsl.init_values) == ("spectral", "model")
    assert not trainer.sparse.inherited and not trainer.sparse.norms
    group = trainer.sparse.groups[0]
    weights = torch.cat([first.weights()[s.name].flatten() for s in group.slices])
    assert torch.equal(group.live_values(), weights[group.live_positions()])
    del then["train_method"]
    usual, _ = sparse_trainer_of("ConvNCF", then, density=0.2)
    assert usual.dsl.init_values == "topology" and usual.sparse.norms


@pytest.mark.parametrize("init", ["random", "er"])
def test_a_smaller_budget_keeps_the_largest_weights(init: str, data: Path, tmp_path: Path) -> None:
    """Whatever topology the method would draw."""
    given = settings("BPR", data, tmp_path, embedding_size=64)
    first = sparse_run("BPR", given, **SPARSE, init="random")
    then = settings("ConvNCF", data, tmp_path, train_method="after_pretrain")
    then["pre_model_path"] = first.trainer.saved_model_file
    trainer, _ = sparse_trainer_of("ConvNCF", then, **{**SPARSE, "density": 0.05}, init=init, seed=5)
    group = trainer.sparse.groups[0]
    weights = torch.cat([first.weights()[s.name].flatten() for s in group.slices])
    largest = weights.abs().topk(group.budget).values.sort().values
    assert torch.equal(group.live_values().abs().sort().values, largest)


@pytest.mark.parametrize(
    "name, more, says",
    [
        (
            "RaCT",
            {"train_stage": "finetune", "pre_model_path": "nowhere.dsl"},
            r"pre_model_path='nowhere\.dsl'",
        ),
        ("S3Rec", {"train_stage": "finetune"}, "pre_model_path=''"),
        ("S3Rec", {"train_stage": "finetun"}, "did you mean 'finetune'"),
        ("KD_DAGFM", {"phase": "distillation"}, "warm_up"),
        ("NeuMF", {"use_pretrain": True}, "mf_pretrain_path=None"),
        ("NAIS", {"pretrain_path": "nowhere.pth"}, "pretrain_path='nowhere.pth'"),
    ],
)
def test_a_file_or_stage_that_is_not_there_is_one_sentence(
    name: str, more: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """Before any data is loaded, here from a folder that does not exist."""
    with pytest.raises(ConfigError, match=says):
        sparse_trainer_of(name, settings(name, tmp_path / "nowhere", tmp_path, **more), **SPARSE)


def test_a_file_that_is_no_checkpoint_is_one_sentence(data: Path, tmp_path: Path) -> None:
    """Whatever torch says of it."""
    file = tmp_path / "bad.pth"
    file.write_text("no checkpoint")
    given = settings("RaCT", data, tmp_path, train_stage="finetune", pre_model_path=str(file))
    with pytest.raises(DSLError, match="Cannot read the checkpoint"):
        sparse_trainer_of("RaCT", given, **SPARSE)


def test_a_checkpoint_with_a_broken_index_is_refused(data: Path, tmp_path: Path) -> None:
    """The weights would land in wrong places without a word."""
    given = settings("RaCT", data, tmp_path)
    file = Path(sparse_run("RaCT", given, **SPARSE).trainer.saved_model_file)
    state = read_checkpoint(file)
    key = next(key for key in state["state_dict"] if key.endswith("column_ids"))
    state["state_dict"][key] = state["state_dict"][key].flip(0)
    write_checkpoint(file, state)
    with pytest.raises(ConfigError, match="do not fit its index"):
        sparse_trainer_of(
            "RaCT", {**given, "train_stage": "critic_pretrain", "pre_model_path": str(file)}, **SPARSE
        )
