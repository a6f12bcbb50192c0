"""Trained runs, loaded from their checkpoints, and written for RecBole's own tools."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.model.general_recommender import BPR as RecBolesBPR
from recbole.utils import get_trainer, init_seed
from recbole.utils.case_study import full_sort_topk

from benchmarks.baseline import recbole_trainer, run_recbole_itself
from recbole_dsl import load_data_and_model, property_files, support
from recbole_dsl.cli import main
from recbole_dsl.compare.by_recbole import needed_settings
from recbole_dsl.config import RecBoleDSLConfig
from recbole_dsl.errors import CheckpointError, ConfigError, DataError, DSLError, TargetError
from recbole_dsl.experiment import load_data, run_recbole_dsl
from recbole_dsl.packed.group import PackedGroup
from recbole_dsl.packed.layout import dense_state_dict
from recbole_dsl.serving import by_recbole
from recbole_dsl.stages import check_stage
from recbole_dsl.to_recbole import write_recbole_checkpoint
from recbole_dsl.training.adaptations import clear_model_caches
from recbole_dsl.training.checkpoint import read_checkpoint, write_checkpoint
from tests.harm import Harm
from tests.model_runs import no_flags, settings_of, sparse_run
from tests.recbole_runs import QUIET
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


def best_in(folder: Path) -> Path:
    """The best checkpoint of the only run in a folder."""
    (file,) = [p for p in folder.glob("*.dsl") if not p.stem.endswith("-last")]
    return file


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


@pytest.mark.parametrize("topology", ["random", "er"])
def test_a_model_s_file_may_have_changed_since(
    topology: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Budgets are those that the run had, whatever topology the property file chooses by now."""
    folder = tmp_path / "properties"
    shutil.copytree(property_files.properties_dir(), folder)
    (folder / "model/MultiVAE.yaml").write_text(f"methods:\n  dsl_plus:\n    dsl_init: {topology}\n", "utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(property_files, "properties_dir", lambda: folder)
        run = sparse_run("MultiVAE", settings_of("MultiVAE", data), **{**DSL, "method": "dsl_plus"})
    assert run.trainer.dsl.init == topology
    expected = metrics(run.trainer, run.data[2])
    config, model, _, _, _, test_data = load_data_and_model(run.trainer.saved_model_file)
    assert metrics(recbole_s_own(config, model), test_data) == expected


def test_the_default_method_may_have_changed_since(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Method and density are those of the run, though nobody gave them."""
    folder = tmp_path / "properties"
    shutil.copytree(property_files.properties_dir(), folder)
    (folder / "model/DMF.yaml").write_text("default_method: dsl\n", "utf-8")
    settings = {**settings_of("DMF", data), "checkpoint_dir": str(tmp_path / "saved")}
    with monkeypatch.context() as patch, no_flags():
        patch.setattr(property_files, "properties_dir", lambda: folder)
        result = run_recbole_dsl("DMF", "tiny", config_dict=settings)
    assert (result.method, result.config["dsl_density"]) == ("dsl", 0.5)
    (file,) = (tmp_path / "saved").glob("DMF*[0-9].dsl")
    config, model, *_ = load_data_and_model(file)
    assert (config["dsl_method"], config["dsl_density"]) == ("dsl", 0.5)
    assert sum(m.budget for m in model.modules() if isinstance(m, PackedGroup)) == result.sparsity["budget"]


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


def test_nor_do_they_for_recbole(trained: Any, tmp_path: Path) -> None:
    """Whose configuration to-recbole makes; its models evaluate a text, too."""
    harm = f"__import__('os').mkdir({str(tmp_path / 'harm')!r})"
    _, file = trained("BPR")
    state = read_checkpoint(file)
    state["given"]["a_key"] = harm
    write_checkpoint(tmp_path / "evil.dsl", state)
    assert main(["to-recbole", str(tmp_path / "evil.dsl"), "--out", str(tmp_path / "dense.pth")]) == 0
    assert torch.load(tmp_path / "dense.pth", weights_only=False)["config"]["a_key"] == harm
    state["config"]["dataset"] = str(tmp_path / "pickle")
    write_checkpoint(tmp_path / "evil.dsl", state)
    with pytest.raises(ConfigError, match="allowed is the name of a dataset"):
        load_data_and_model(tmp_path / "evil.dsl")
    with pytest.raises(ConfigError, match=r"is refused for model 'KD_DAGFM'.*: allowed are CrossNet, CIN"):
        check_stage(["KD_DAGFM"], {"phase": "teacher_training", "teacher": f"({harm}, CrossNet)[1]"})
    assert not (tmp_path / "harm").exists()


def test_pickles_of_data_that_lie_beside_a_checkpoint_are_not_opened(trained: Any, tmp_path: Path) -> None:
    """RecBole looks for them in the folder of checkpoints, which the file names, and in 'saved'."""
    _, file = trained("BPR")
    state = read_checkpoint(file)
    places = [tmp_path / "theirs", tmp_path / "saved"]
    for place in places:
        place.mkdir(exist_ok=True)
        for name in (f"{NAME}-Dataset.pth", f"{NAME}-for-BPR-dataloader.pth"):
            (place / name).write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    state["given"]["checkpoint_dir"] = str(places[0])
    write_checkpoint(tmp_path / "evil.dsl", state)
    config, *_ = load_data_and_model(tmp_path / "evil.dsl")
    assert not (tmp_path / "harm").exists()
    assert config["checkpoint_dir"] == "saved"


def test_nothing_is_written_where_a_checkpoint_is_loaded(
    trained: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the working directory, which may be read-only: no folder of checkpoints, logs or TensorBoard."""
    _, file = trained("BPR")
    file = file.resolve()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    load_data_and_model(file, data_path=str(data))
    with no_flags():
        assert main(["export", str(file), "--to", str(tmp_path / "model"), f"--data_path={data}"]) == 0
        assert main(["to-recbole", str(file), "--out", str(tmp_path / "d.pth"), f"--data_path={data}"]) == 0
    assert not list((tmp_path / "empty").iterdir())


def test_another_file_is_tested_with_its_own_weights(trained: Any) -> None:
    """Not with what the model has kept of those before; KGIN does not name it among its other parameters."""
    run, best = trained("KGIN", epochs=3, learning_rate=0.01)
    last = best.with_name(f"{best.stem}-last.dsl")
    test = run.data[2]
    told = [metrics(run.trainer, test, file) for file in (best, last, best)]
    clear_model_caches(run.trainer.model)
    assert told[0] == told[2] != told[1] and metrics(run.trainer, test, last) == told[1]


def test_rows_that_stand_for_others_now_are_refused(trained: Any, data: Path, tmp_path: Path) -> None:
    """RecBole numbers users and items as they come; added interactions of known ones change nothing."""
    _, file = trained("BPR")
    (tmp_path / "new").mkdir()
    shutil.copytree(data / NAME, tmp_path / "new" / NAME)
    table = tmp_path / "new" / NAME / f"{NAME}.inter"
    header, *rows = table.read_text().splitlines()
    known = dict.fromkeys(row.split("\t")[1] for row in rows)
    user, theirs = rows[0].split("\t")[0], {row.split("\t")[1] for row in rows if row.split("\t")[0] == "u0"}
    another = next(item for item in known if item not in theirs)
    table.write_text("\n".join([header, *rows, f"{user}\t{another}\t1\t1", ""]))
    load_data_and_model(file, data_path=str(tmp_path / "new"))
    table.write_text("\n".join([header, *rows[::-1], ""]))
    with pytest.raises(
        DataError, match=r"was trained on other values of item_id, or the same in another order"
    ):
        load_data_and_model(file, data_path=str(tmp_path / "new"))
    state = read_checkpoint(file)
    del state["tokens"]  # as before they were noted
    write_checkpoint(tmp_path / "old.dsl", state)
    load_data_and_model(tmp_path / "old.dsl", data_path=str(tmp_path / "new"))


def test_a_checkpoint_of_several_processes_is_loaded_by_one(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which connects to nobody, whatever address the file names."""
    _, file = trained("BPR")
    state = read_checkpoint(file)
    state["given"] |= {
        "nproc": 2, "world_size": 2, "ip": "192.0.2.1", "port": 5791, "offset": 0, "local_rank": 1,
        "single_spec": False, "gpu_id": [0, 1],
    }  # fmt: skip
    write_checkpoint(tmp_path / "two.dsl", state)

    def connects(*_: Any, **__: Any) -> None:
        raise AssertionError("connects")

    monkeypatch.setattr(torch.distributed, "init_process_group", connects)
    config, *_ = load_data_and_model(tmp_path / "two.dsl")
    assert config["single_spec"]
    served = by_recbole._config({"model": "BPR", "dataset": NAME, "given": state["given"]})
    assert served["single_spec"]


@pytest.mark.parametrize("amount", ["dsl_density: 0.3", "dsl_budget: 100"])
def test_a_method_file_may_be_gone(amount: str, data: Path, tmp_path: Path) -> None:
    """What it said is in the checkpoint: which tensors are sparse, in which groups and storage."""
    lines = ["dsl_include: [item_embedding.weight]", "dsl_groups: per_tensor", "dsl_update_interval: 2 epochs"]
    (tmp_path / "mine.yaml").write_text("\n".join([amount, *lines]))
    with no_flags():
        own = {"dsl_method": "mine.yaml", "checkpoint_dir": str(tmp_path / "saved")}
        run_recbole_dsl("BPR", NAME, config_dict={**settings_of("BPR", data), **own})
    (tmp_path / "mine.yaml").unlink()
    file = best_in(tmp_path / "saved")
    _, model, *_ = load_data_and_model(file)
    (group,) = [m for m in model.modules() if isinstance(m, PackedGroup)]
    assert [part.name for part in group.slices] == ["item_embedding.weight"]
    assert torch.equal(group.weight, read_checkpoint(file)["state_dict"][f"{_name_of(model, group)}.weight"])


def test_a_method_file_of_a_model_without_all_tensors(data: Path, tmp_path: Path) -> None:
    """The family's file excludes tensors that GRU4Rec does not have, with any method."""
    (tmp_path / "mine.yaml").write_text("dsl_density: 0.4\n")
    with no_flags():
        own = {"dsl_method": "mine.yaml", "checkpoint_dir": str(tmp_path / "saved")}
        run_recbole_dsl("GRU4Rec", NAME, config_dict={**settings_of("GRU4Rec", data), **own})
    file = best_in(tmp_path / "saved")
    _, model, *_ = load_data_and_model(file)
    assert any(isinstance(module, PackedGroup) for module in model.modules())
    with pytest.raises(TargetError, match="pattern 'nothing' matches no tensor"):
        load_data_and_model(file, dsl_exclude=["nothing"])


def test_a_method_file_may_set_recboles_keys(data: Path, tmp_path: Path) -> None:
    """They are the model's, wherever its checkpoint is loaded, and a scope that it lifts stays lifted."""
    method = "dsl_density: 0.3\ndsl_init: random\ndsl_include: ~\ndsl_min_weights: 1\n"
    method += "mf_embedding_size: 8\nmlp_hidden_size: [6]\n"
    (tmp_path / "mine.yaml").write_text(method)
    given = {k: v for k, v in settings_of("NeuMF", data).items() if "size" not in k or "batch" in k}
    with no_flags():
        own = {"dsl_method": "mine.yaml", "checkpoint_dir": str(tmp_path / "saved")}
        run_recbole_dsl("NeuMF", NAME, config_dict={**given, **own})
    (tmp_path / "mine.yaml").unlink()
    file = best_in(tmp_path / "saved")
    config, model, *_ = load_data_and_model(file)
    assert (config["mf_embedding_size"], config["mlp_hidden_size"]) == (8, [6])
    sparse = {part.name for m in model.modules() if isinstance(m, PackedGroup) for part in m.slices}
    assert any("mlp_layers" in name for name in sparse)
    write_recbole_checkpoint(file, tmp_path / "dense.pth")
    assert torch.load(tmp_path / "dense.pth", weights_only=False)["config"]["mf_embedding_size"] == 8


def test_open_intervals_stay_open(data: Path, tmp_path: Path) -> None:
    """As text; evaluated they are tuples, of which JSON makes closed ones."""
    given = {**settings_of("BPR", data), "checkpoint_dir": str(tmp_path / "saved")}
    with no_flags():
        sizes = {}
        for interval in ("(14,40)", (14, 40), "[14,40]"):
            given["item_inter_num_interval"] = interval
            config = RecBoleDSLConfig("BPR", NAME, config_dict=given)
            sizes[str(interval)] = load_data(config)[0].item_num
            assert isinstance(config.given["item_inter_num_interval"], str)
        assert sizes["(14,40)"] == sizes["(14, 40)"] != sizes["[14,40]"]
        run_recbole_dsl("BPR", NAME, config_dict={**given, "item_inter_num_interval": "(14,40)"})
    file = best_in(tmp_path / "saved")
    assert load_data_and_model(file)[1].item_embedding.num_embeddings == sizes["(14,40)"]


def test_a_class_that_is_called_as_recboles_is_asked_for(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another would be loaded in its place; the command takes it as well."""
    own = type("BPR", (RecBolesBPR,), {"__module__": "tests.mine"})
    with no_flags():
        given = {**settings_of("BPR", data), "checkpoint_dir": str(tmp_path / "saved")}
        run_recbole_dsl(own, NAME, config_dict=given)
    file = best_in(tmp_path / "saved")
    with pytest.raises(
        CheckpointError, match=r"'BPR', which is not RecBole's own; .*--model=package.module:Class"
    ):
        load_data_and_model(file)
    assert isinstance(load_data_and_model(file, own)[1], own)
    command = ["to-recbole", str(file), "--out", str(tmp_path / "dense.pth")]
    with no_flags():
        assert main(command) == 2
        assert main([*command, "--model=recbole.model.general_recommender.bpr:BPR"]) == 0
    assert "--model=package.module:Class" in capsys.readouterr().err


def test_recbole_gets_the_settings_that_a_model_needs(trained: Any, data: Path, tmp_path: Path) -> None:
    """Those of its property file, which RecBole does not read."""
    _, file = trained("GRU4RecKG")
    write_recbole_checkpoint(file, tmp_path / "dense.pth")
    config = torch.load(tmp_path / "dense.pth", weights_only=False)["config"]
    needed = needed_settings(["GRU4RecKG"])
    assert needed and all(config[key] is not None for key in needed)


def _name_of(model: Any, group: PackedGroup) -> str:
    return next(name for name, module in model.named_modules() if module is group)


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
            model = config.model_class(dense["config"], train_data._dataset).to(config["device"])
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
        (["{file}", "--out", "{file}", "--force"], "is the checkpoint itself; allowed is another name"),
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
    assert read_checkpoint(file)


# --- starting from trained weights ----------------------------------------------------------------


@pytest.fixture
def dense_file(data: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """RecBole's own checkpoint of a trained BPR, and the weights in it."""
    trainer, train_data, valid_data, _ = recbole_trainer("BPR", NAME, settings_of("BPR", data))
    trainer.fit(train_data, valid_data, show_progress=False)
    return Path(trainer.saved_model_file), torch.load(trainer.saved_model_file, weights_only=False)[
        "state_dict"
    ]


def started(data: Path, tmp_path: Path, file: Path, **more: Any) -> Any:
    """The result and the last checkpoint of a run of no epochs that starts from a file."""
    given = {
        **settings_of("BPR", data), "epochs": 0, "checkpoint_dir": str(tmp_path / "ours"),
        "dsl_start_from": str(file), "dsl_method": "dsl", **more,
    }  # fmt: skip
    with no_flags():
        result = run_recbole_dsl(more.pop("model", "BPR"), NAME, config_dict=given)
    (last,) = (tmp_path / "ours").glob("*-last.dsl")
    return result, read_checkpoint(last)


def test_at_density_one_a_dense_checkpoint_is_what_it_was(dense_file: Any, data: Path, tmp_path: Path) -> None:
    """RecBole's metrics of its own file."""
    file, _ = dense_file
    trainer, *_, test_data = recbole_trainer("BPR", NAME, settings_of("BPR", data))
    result, _ = started(data, tmp_path, file, dsl_density=1.0)
    assert result.test_result == metrics(trainer, test_data, file)


def test_the_largest_weights_of_a_dense_checkpoint_live(dense_file: Any, data: Path, tmp_path: Path) -> None:
    """With their values, under a budget of a tenth in both tables together."""
    file, weights = dense_file
    _, last = started(data, tmp_path, file, dsl_density=0.1, dsl_init="magnitude", dsl_groups="joint")
    flat = torch.cat([weights[f"{side}_embedding.weight"].flatten() for side in ("user", "item")]).cpu()
    values = last["state_dict"]["packed_joint.weight"]
    largest = flat.abs().topk(values.numel()).values
    assert torch.equal(values.abs().sort().values, largest.sort().values)


def test_scores_that_a_dense_checkpoint_keeps_are_not_those_of_the_sparse_model(
    data: Path, tmp_path: Path
) -> None:
    """RecBole's checkpoints of graph models hold the propagated embeddings of their dense weights."""
    given = {**settings_of("LightGCN", data), "learning_rate": 0.05}
    trainer, train_data, valid_data, _ = recbole_trainer("LightGCN", NAME, given)
    trainer.fit(train_data, valid_data, show_progress=False)
    sparse = {
        **given, "epochs": 0, "dsl_start_from": trainer.saved_model_file, "dsl_method": "dsl",
        "dsl_density": 0.05, "dsl_init": "magnitude", "checkpoint_dir": str(tmp_path / "ours"),
    }  # fmt: skip
    with no_flags():
        saved, unsaved = (run_recbole_dsl("LightGCN", NAME, config_dict=sparse, saved=s) for s in (True, False))
    assert unsaved.test_result == saved.test_result


def test_ours_keeps_its_topology(trained: Any, data: Path, tmp_path: Path) -> None:
    """A sparse checkpoint is a start as well."""
    _, file = trained("BPR")
    _, last = started(data, tmp_path, file, dsl_density=0.2)
    now, was = (dense_state_dict(s["state_dict"], s["layout"]) for s in (last, read_checkpoint(file)))
    assert now.keys() == was.keys() and all(torch.equal(now[key], was[key]) for key in was)


def test_what_does_not_fit_is_refused(dense_file: Any, trained: Any, data: Path, tmp_path: Path) -> None:
    """Another size, another model, no file, a contradiction, a file with code."""
    file, _ = dense_file
    cases: list[tuple[dict[str, Any], str]] = [
        ({"embedding_size": 4}, r"item_embedding.weight is of shape .* there and of shape"),
        ({"dsl_start_from": "nowhere.pth"}, "is no file"),
        ({"dsl_init": "nmf", "dsl_init_values": "topology"}, "contradicts dsl_init_values"),
    ]
    for more, says in cases:
        with pytest.raises(ConfigError, match=says):
            started(data, tmp_path, file, **more)
    with no_flags(), pytest.raises(ConfigError, match="is of model 'BPR'; allowed is a checkpoint of LightGCN"):
        given = {**settings_of("LightGCN", data), "dsl_start_from": str(file)}
        run_recbole_dsl("LightGCN", NAME, config_dict=given)

    torch.save({"state_dict": Harm(tmp_path / "harm")}, tmp_path / "evil.pth")
    with pytest.raises(DSLError, match="mkdir"):
        started(data, tmp_path, tmp_path / "evil.pth")
    assert not (tmp_path / "harm").exists()


def test_a_tenth_of_the_weights_takes_a_tenth_of_the_file(tmp_path: Path) -> None:
    """BPR of 0.67 million weights beside RecBole's file, which has no index, record or random states.

    Whatever the size of the model, ours has some 35 kB of random states and settings.
    """
    given = {**QUIET, "embedding_size": 256, "epochs": 1, "checkpoint_dir": str(tmp_path)}
    run_recbole_itself("BPR", "ml-100k", given)
    with no_flags():
        run_recbole_dsl("BPR", "ml-100k", config_dict={**given, "dsl_method": "dsl", "dsl_density": 0.1})
    (theirs,), (ours,) = tmp_path.glob("*.pth"), tmp_path.glob("*-last.dsl")
    assert ours.stat().st_size <= 0.13 * theirs.stat().st_size
