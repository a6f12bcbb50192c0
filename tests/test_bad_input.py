"""Every mistake ends in one clear sentence and a non-zero exit, before training."""

from __future__ import annotations

import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from recbole_dsl import run_recbole_dsl
from recbole_dsl.cli import main
from recbole_dsl.config import RecBoleDSLConfig, no_flags
from tests.recbole_runs import command_line

CASES = {
    "unknown model": (["--model=LightGCM"], ["LightGCM", "LightGCN"]),
    "unknown dataset": (["--dataset=ml-100q"], ["ml-100q"]),
    "unknown key": (["--dsl_densty=0.1"], ["dsl_densty", "dsl_density"]),
    "density 0": (["--dsl_density=0"], ["dsl_density", "0", "above 0"]),
    "density -1": (["--dsl_density=-1"], ["dsl_density", "-1"]),
    "density 1.5": (["--dsl_density=1.5"], ["dsl_density", "1.5"]),
    "density nan": (["--dsl_density=nan"], ["dsl_density", "nan"]),
    "density abc": (["--dsl_density=abc"], ["dsl_density", "abc"]),
    "density with a space": (["--dsl_density", "0.1"], ["--dsl_density=0.1"]),
    "two equal signs": (["--dsl_end=a=b"], ["exactly one '='"]),
    "interval 0": (["--dsl_update_interval=0"], ["dsl_update_interval", "at least 1"]),
    "pattern without a match": (["--dsl_include=usr_*"], ["usr_*", "user_embedding.weight"]),
    "nothing to make sparse": (["--model=Pop"], ["Pop"]),
    "unwritable result": (["--dsl_result=a_file/result.json"], ["a_file/result.json"]),
    "unknown method": (["--dsl_method=dls_plus"], ["dls_plus", "dsl_plus"]),
    "nmf where nothing fits": (
        ["--model=GCMC", "--dsl_init=nmf"],
        ["nmf", "a table or matrix of users or items"],
    ),
    "budget too large": (["--dsl_budget=999999999"], ["dsl_budget", "168128"]),
    "budget below the index": (["--dsl_budget=5kB"], ["dsl_budget", "index"]),
    "budget beyond the dense model": (["--dsl_budget=100GB"], ["dsl_budget=100GB", "851152 bytes"]),
    "width below the density": (["--dsl_width=4"], ["dsl_width=4", "10508"]),
    "file of a model missing": (["--model=LDiffRec", "--n_cate=2"], ["LDiffRec", "item_emb.npy"]),
    "header missing": (["--dataset=nohead", "--data_path=."], ["nohead", "user_id:token"]),
    "no rows": (["--dataset=norows", "--data_path=."], ["norows", "rows"]),
    "model of a file": (["--config_files=model.yaml"], ["LightGNC", "LightGCN"]),
    "no process": (["--nproc=0"], ["nproc", "at least one process"]),
    "growth memory too small": (["--dsl_growth_memory=100B"], ["dsl_growth_memory"]),
    "seed beyond numpy's": (["--seed=5000000000"], ["seed=5000000000", "4294967295"]),
    "option of clipping": (["--clip_grad_norm={'maxnorm':1}"], ["clip_grad_norm", "max_norm"]),
    "norm of clipping": (["--clip_grad_norm={'max_norm':1,'norm_type':'abc'}"], ["norm_type", "above 0"]),
    "place of a dataset": (["--dataset_save_path=1.5"], ["dataset_save_path=1.5", "path of a file"]),
    "rankings of labelled rows": (
        ["--load_col={'inter':['user_id','item_id','rating']}", "--eval_args={'mode':'labeled'}"],
        ["'labeled'", "need rankings"],
    ),
    "labels that are not there": (
        ["--metrics=['AUC']", "--valid_metric=AUC", "--eval_args={'mode':'labeled'}"],
        ["LABEL_FIELD='label'", "threshold"],
    ),
    "labels in the test alone": (
        ["--metrics=['AUC']", "--valid_metric=AUC", "--eval_args={'mode':{'valid':'uni10','test':'labeled'}}"],
        ["LABEL_FIELD='label'", "threshold"],
    ),
    "labels in validation alone": (
        ["--metrics=['AUC']", "--valid_metric=AUC", "--eval_args={'mode':{'valid':'labeled','test':'uni10'}}"],
        ["'valid': 'labeled'", "labeled for both"],
    ),
    "no number of layers": (["--model=LightGCN", "--n_layers=None"], ["n_layers=None", "at least 0"]),
    "no history": (["--model=SASRec", "--MAX_ITEM_LIST_LENGTH=0"], ["MAX_ITEM_LIST_LENGTH=0", "at least 1"]),
    "path of a dataset": (["--dataset=some/where"], ["some/where", "data_path"]),
    "places of metrics": (["--metric_decimal_place=abc"], ["metric_decimal_place='abc'"]),
    "a part of an item": (["--topk=[10,10.5]"], ["topk=[10, 10.5]", "whole number of at least 1"]),
    "no length of a ranking": (["--topk=[]"], ["topk=[]", "or a list of such"]),
    "a list tagged as a mapping": (["--config_files=tagged.yaml"], ["tagged.yaml", "not valid YAML"]),
    "more than all items": (["--topk=5000", "--valid_metric=MRR@5000"], ["topk=[5000]", "1682 items"]),
    "a process nobody started": (["--local_rank=0"], ["local_rank=0", "torchrun"]),
    "no folder for checkpoints": (["--checkpoint_dir=None"], ["checkpoint_dir=None", "path of a folder"]),
    "no metrics": (["--metrics=None"], ["metrics=None", "ndcg"]),
    "unknown metric": (["--metrics=['Recall','NDGC']"], ["'NDGC'", "'ndcg'"]),
    "text for a number": (
        ["--model=NeuMF", "--dropout_prob=abc"],
        ["dropout_prob='abc'", "a number such as 0"],
    ),
    "text for layers": (["--model=LightGCN", "--n_layers=abc"], ["n_layers='abc'", "at least 0"]),
    "text for a truth value": (["--use_gpu=Flase"], ["use_gpu='Flase'", "True or False"]),
    "a number for a list": (
        ["--model=NeuMF", "--mlp_hidden_size=64"],
        ["mlp_hidden_size=64", "a list such as [128, 64]"],
    ),
    "unknown loss": (["--model=SASRec", "--loss_type=BRP"], ["loss_type='BRP'", "'BPR'", "CE"]),
    "no device": (["--gpu_id=cuda"], ["gpu_id='cuda'", "numbers of devices"]),
    "unknown part of evaluation": (["--eval_args={'oder':'TO'}"], ["'oder'", "'order'"]),
    "unknown part of sampling": (
        ["--train_neg_sample_args={'distrbution':'uniform'}"],
        ["'distrbution'", "'distribution'"],
    ),
    "unknown split": (["--eval_args={'split':{'XX':[0.8,0.1,0.1]}}"], ["'XX'", "RS, LS, TS"]),
    "negative share of a split": (
        ["--eval_args={'split':{'RS':[0.8,-0.1,0.3]}}"],
        ["RS=[0.8, -0.1, 0.3]", "three"],
    ),
    "nothing to train on": (["--eval_args={'split':{'TS':[0,0,1]}}"], ["TS=[0, 0, 1]", "first above"]),
    "two shares": (["--eval_args={'split':{'RS':[0.8,0.2]}}"], ["RS=[0.8, 0.2]", "three numbers"]),
    "shares of a word": (["--eval_args={'split':{'LS':'valid'}}"], ["LS='valid'", "valid_only"]),
    "no candidates by default": (
        ["--train_neg_sample_args={'dynamic':True}"],
        ["candidate_num", "at least 1"],
    ),
    "no negatives": (["--train_neg_sample_args={'sample_num':0}"], ["sample_num", "at least 1"]),
    "number for a flag": (["--enable_amp=1"], ["enable_amp=1", "True or False"]),
    "negatives below zero": (
        ["--train_neg_sample_args={'distribution':'uniform','sample_num':-1,'alpha':1.0}"],
        ["sample_num in train_neg_sample_args=-1", "at least 1"],
    ),
    "negatives that are text": (
        ["--train_neg_sample_args={'distribution':'uniform','sample_num':'1','alpha':1.0}"],
        ["sample_num in train_neg_sample_args", "whole number"],
    ),
    "no candidates": (
        ["--train_neg_sample_args={'distribution':'uniform','dynamic':True,'candidate_num':0}"],
        ["candidate_num in train_neg_sample_args=0", "at least 1"],
    ),
    "no interval": (["--user_inter_num_interval=abc"], ["user_inter_num_interval='abc'", "[5,inf)"]),
    "interval the wrong way round": (["--val_interval={'rating':'[5,3]'}"], ["val_interval of rating='[5,3]'"]),
    "columns that are text": (["--load_col=abc"], ["load_col='abc'", "inter: [user_id, item_id]"]),
    "a separator that is a number": (["--field_separator=1"], ["field_separator=1 ", "such as '\\t'"]),
    "the name of a column that is a list": (["--LABEL_FIELD=[]"], ["LABEL_FIELD=[] ", "such as 'label'"]),
    "bounds without a field": (["--val_interval=[3,5]"], ["val_interval=[3, 5]", "mapping"]),
    "places of losses": (["--loss_decimal_place=-1"], ["loss_decimal_place=-1", "at least 0"]),
    "fewer than no layers": (["--model=LightGCN", "--n_layers=-1"], ["n_layers=-1", "at least 0"]),
    "clipping to less than nothing": (["--clip_grad_norm={'max_norm':-1}"], ["'max_norm': -1", "above 0"]),
    "settings below dsl": (
        ["--config_files=nested.yaml"],
        ["dsl={'density': 0.05} in 'nested.yaml'", "'dsl_density: 0.1'"],
    ),
    "settings below another": (["--config_files=deep.yaml"], ["methods=", "deep.yaml", "not nested"]),
    "unknown order": (["--eval_args={'order':'XX'}"], ["order='XX'", "RO and TO"]),
    "unknown groups": (["--eval_args={'group_by':'item'}"], ["group_by='item'", "user and none"]),
    "unknown mode": (["--eval_args={'mode':'uniform'}"], ["mode='uniform'", "uni100"]),
    "mode of an unknown phase": (["--eval_args={'mode':{'vaild':'full'}}"], ["'vaild'", "valid and test"]),
    "rate without bound": (["--learning_rate=1e30"], ["learning_rate=1e+30", "at most"]),
    "empty list of files": (["--config_files="], ["--config_files"]),
    "a key twice in a file": (["--config_files=twice.yaml"], ["twice.yaml", "epochs", "there twice in line 3"]),
    "no wandb": (["--log_wandb=True"], ["log_wandb", "not installed"]),
}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole writes logs into the working directory; ``a_file`` is in the way of a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("")
    (tmp_path / "model.yaml").write_text("model: LightGNC\n")
    (tmp_path / "tagged.yaml").write_text("x: !!map [1, 2]\n")
    (tmp_path / "nested.yaml").write_text("dsl: {density: 0.05}\n")
    (tmp_path / "deep.yaml").write_text("methods: {dsl_plus: {dsl_density: 0.05}}\n")
    (tmp_path / "twice.yaml").write_text("epochs: 1\neval_args: {order: RO}\nepochs: 2\n")
    for name, text in (("nohead", "1\t2\n"), ("norows", "user_id:token\titem_id:token\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.inter").write_text(text)


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_no_training(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names what is wrong and what is allowed; ``fit`` is never reached."""
    from recbole.trainer import Trainer

    def must_not_train(*args: object, **kwargs: object) -> None:
        raise AssertionError("training started")

    monkeypatch.setattr(Trainer, "fit", must_not_train)
    flags, words = CASES[case]
    monkeypatch.setattr("sys.argv", ["run_recbole_dsl.py"])
    assert main(["--state=ERROR", *flags]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and last.endswith(".")
    assert "allowed" in last
    for word in words:
        assert word in last


@pytest.mark.parametrize(
    ("key", "given", "meant"),
    [
        ("epochs", "1", 1),
        ("epochs", 1.0, 1),
        ("learning_rate", "0.01", 0.01),
        ("train_batch_size", "1e3", 1000),
    ],
)
def test_numbers_are_what_they_say(key: str, given: object, meant: object) -> None:
    """As text or with a decimal point, in files and from Python; RecBole would fail on them later."""
    with no_flags():
        value = RecBoleDSLConfig("BPR", "ml-100k", None, {key: given})[key]
    assert value == meant and type(value) is type(meant)


def test_settings_of_a_comparison_that_nobody_knows_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip in a flag would run the whole grid with defaults; a tuned setting may be one's own model's."""
    monkeypatch.setattr("sys.argv", ["recbole-dsl"])
    (tmp_path / "space").write_text("my_own choice [0.1]\n")
    for module in ("compare_command", "tune_command"):
        monkeypatch.setattr(f"recbole_dsl.{module}.Store", _NoStore)
    with pytest.raises(_NoStore.Reached):
        main(["compare", "--methods=static", "--learning_rat=0.5", "--epochs=1"])
    with pytest.raises(_NoStore.Reached):
        main(["tune", "--methods=static", "--space=space", "--epoch=1"])
    told = [record.getMessage() for record in caplog.records if "known neither" in record.getMessage()]
    assert [line.split()[0] for line in told] == ["--learning_rat", "--epoch", "--my_own"]
    assert "'learning_rate'" in told[0] and "'epochs'" in told[1] and "did you mean" not in told[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "--nmae=foo"], ["--nmae", "'--name'"]),
        (["compare", "--name="], ["--name is empty"]),
        (["vectors", "art", "--to", ""], ["argument --to", "it is empty"]),
        (["export", "", "--to", "art"], ["argument checkpoint", "it is empty"]),
        (["tune", "--space=space", "--trails=3"], ["--trails", "'--trials'"]),
        (["compare", "--datasets=ml-100k", "--dataset=ml-1m"], ["--datasets and --dataset"]),
        (["trian", "--epochs=1"], ["'trian'", "'train'"]),
        (["inspect", "a_file"], ["a_file", "it is a file"]),
    ],
)
def test_misspelt_options_and_commands_are_refused(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """They would be taken for settings, or for something else."""
    monkeypatch.setattr("sys.argv", ["recbole-dsl"])
    (tmp_path / "space").write_text("learning_rate choice [0.1]\n")
    before = sorted(tmp_path.iterdir())
    assert main(arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in told for word in ["allowed", *words])
    assert sorted(tmp_path.iterdir()) == before


def test_options_that_look_like_commands_are_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--model X`` with a space is RecBole's own way."""
    taken: list[list[str]] = []
    monkeypatch.setattr("recbole_dsl.cli._module", lambda _: types.SimpleNamespace(run=taken.append))
    for arguments in (["--model", "BPR"], ["-m", "BPR"], ["--nproc", "1"]):
        assert main(arguments) == 0
    assert len(taken) == 3


def test_what_recbole_takes_is_taken() -> None:
    """Checks of kinds and words refuse nothing that RecBole understands."""
    given = {
        "eval_args": {"split": {"TS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": None, "mode": "uni100"},
        "train_neg_sample_args": {"distribution": "popularity", "alpha": 0.5},
        "metrics": "NDCG", "topk": [5.0], "valid_metric": "NDCG@5", "gpu_id": (0, 1), "n_layers": 3.0,
    }  # fmt: skip
    with no_flags():
        config = RecBoleDSLConfig("LightGCN", "ml-100k", None, given)
    assert config["eval_args"]["split"] == given["eval_args"]["split"]  # type: ignore[index]
    assert config["n_layers"] == 3 and type(config["n_layers"]) is int  # a model counts to it
    assert config.metric_names() == ["ndcg@5"] and type(config["topk"][0]) is int


def test_misspelt_names_among_tuned_settings_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compared without tuned settings is named, and so is a setting that nothing knows."""
    monkeypatch.setattr("recbole_dsl.compare_command.Store", _NoStore)
    monkeypatch.setattr("sys.argv", ["recbole-dsl"])
    (tmp_path / "tuned.yaml").write_text(
        "chosen: {BPR: {ml-100k: {dense: {learnig_rate: 0.01}, dsl: {learning_rate: 0.01}, plus: {x: 1}}}}\n"
    )
    with pytest.raises(_NoStore.Reached):
        main(["compare", "--models=BPR", "--methods=dense,dsl,dsl_plus,int8", "--tuned=tuned.yaml"])
    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if "tuned settings" in line] == [
        "The tuned settings have none for BPR on ml-100k with method dsl_plus."
    ]
    assert any("learnig_rate" in line and "did you mean 'learning_rate'" in line for line in told)


def test_keys_in_files_that_look_like_others_are_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of flags it is told once, as of flags; keys of one's own are nobody's business."""
    settings = {"learnig_rate": 0.1, "my_own": 3, "epochs": 1}
    told = told_before_training(caplog, monkeypatch, "known neither", "--epoch=1", settings)
    assert [line.split(" is ")[0] for line in told] == ["--epoch", "Key 'learnig_rate'"]
    assert "did you mean 'learning_rate'" in told[1]


def test_another_folder_for_the_data_inside_recbole_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RecBole drops it without a word."""
    assert told_before_training(
        caplog, monkeypatch, "data_path='elsewhere' is not used", "--data_path=elsewhere"
    )


def told_before_training(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    flag: str,
    settings: dict[str, Any] | None = None,
) -> list[str]:
    """The messages with ``words`` of a run of BPR on ml-100k, which all checks let through."""
    monkeypatch.setattr("sys.argv", ["run_recbole_dsl.py", flag])
    monkeypatch.setattr("recbole_dsl.experiment.train_and_test", _NoStore)
    with pytest.raises(_NoStore.Reached):
        run_recbole_dsl("BPR", "ml-100k", None, settings)
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


class _NoStore:
    class Reached(BaseException):
        """All checks are made."""

    def __init__(self, *_: object) -> None:
        raise self.Reached


def test_the_process_exits_with_an_error_and_no_traceback(tmp_path: Path) -> None:
    """Seen from outside, as a user's shell does."""
    done = command_line("--model=LightGCN", "--dsl_density=2", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "error: dsl_density=2" in done.stderr


def test_the_model_of_a_config_file_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the command line names another; without either it is RecBole's BPR on ml-100k."""
    seen = []
    monkeypatch.setattr("recbole_dsl.experiment.run_recbole_dsl", lambda *given: seen.append(given[:2]))
    (tmp_path / "mine.yaml").write_text("model: NeuMF\ndataset: mine\n")
    for flags in (["--config_files=mine.yaml"], ["--config_files=mine.yaml", "-m", "BPR"], []):
        assert main(flags) == 0
    assert seen == [("NeuMF", "mine"), ("BPR", "mine"), ("BPR", "ml-100k")]


def test_an_interrupted_run_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and the shell's usual status."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recbole_dsl.experiment.run_recbole_dsl", interrupt)
    assert main([]) == 130
    assert capsys.readouterr().err.startswith("error: interrupted")


def test_an_interrupt_that_a_library_turns_into_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As numpy does while it is imported: one sentence all the same; without Ctrl-C the error stays one."""
    interrupts = True

    class Command:
        @staticmethod
        def run(argv: object) -> None:
            try:
                if interrupts:
                    signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                pass
            raise RecursionError("within an import")

    monkeypatch.setattr("recbole_dsl.cli._module", lambda command: Command)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's processes may ignore it
    try:
        assert main([]) == 130
        assert capsys.readouterr().err == "error: interrupted; checkpoints that were written are kept.\n"
        interrupts = False
        with pytest.raises(RecursionError):
            main([])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_resume_is_a_key_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a file or without, anywhere among the flags, but with a space it is refused."""
    seen = []
    monkeypatch.setattr("recbole_dsl.experiment.run_recbole_dsl", lambda *_: seen.append(sys.argv[1:]))
    for flags in (["--resume"], ["--resume", "--epochs=3"], ["--resume=a b.dsl"]):
        assert main(flags) == 0
    assert seen == [["--dsl_resume=True"], ["--dsl_resume=True", "--epochs=3"], ["--dsl_resume=a b.dsl"]]
    assert main(["--resume", "a.dsl"]) == 2
    assert "allowed is --resume=a.dsl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_that_wait_sleep_soon(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a command loads torch; what the user has set is left as it is."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    seen = []

    def module(_: str) -> object:
        seen.append(os.environ.get("GOMP_SPINCOUNT"))
        return types.SimpleNamespace(run=lambda _: None)

    monkeypatch.setattr("recbole_dsl.cli._module", module)
    assert main(["models"]) == 0 and seen == [spins]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """``--version`` is not taken for a configuration key either."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("recbole-dsl 0.")


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` is not taken for a configuration key."""
    assert main(["--help"]) == 0
    assert "--model" in capsys.readouterr().out


@pytest.mark.parametrize("given", [["--help", "tune"], ["-h", "tune"], ["tune", "--help"]])
def test_help_about_a_command(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before the command's name or after it."""
    assert main(given) == 0
    assert "recbole-dsl tune" in capsys.readouterr().out
