"""Training processes that are killed, crash in the middle of a save, or find the disk full lose nothing."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_dsl import export_artifact, files
from recbole_dsl.errors import CheckpointError, ConfigError, NumberError
from recbole_dsl.experiment import run_recbole_dsl
from recbole_dsl.training import resuming
from recbole_dsl.training.checkpoint import read_checkpoint
from recbole_dsl.training.holding import Hold
from recbole_dsl.training.keeper import Keeper
from recbole_dsl.training.signals import Interrupted
from tests.model_runs import no_flags, settings_of, sparse_trainer_of
from tests.test_tensor_file import same

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.usefixtures("in_folder", "same_threads"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked"),
]

DSL = {"dsl_method": "dsl", "dsl_density": 0.2, "dsl_update_interval": 5, "dsl_kernels": "torch"}


@pytest.fixture
def same_threads() -> Iterator[None]:
    """Runs here use one thread; the tests that follow have as many as before."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def settings(name: str, data: Path, folder: Path, **more: Any) -> dict[str, Any]:
    """A run of some fifty steps that writes its result beside its checkpoints."""
    return {
        **settings_of(name, data), "epochs": 6, "train_batch_size": 64, "checkpoint_dir": str(folder / "saved"),
        "dsl_result": str(folder / "result.json"), **DSL, **more,
    }  # fmt: skip


def in_process(work: Callable[[], Any]) -> int:
    """Start a process that does some work; returns its number. Its exit status is 0, or 1 after an error."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def finished(process: int) -> int:
    """Wait for a process: its exit status, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def train(name: str, given: dict[str, Any]) -> None:
    """What a user's command does."""
    torch.set_num_threads(1)
    with no_flags():
        run_recbole_dsl(name, "tiny", config_dict=given)


VOLATILE = {"preparation_seconds", "epoch_seconds", "best_file", "checkpoint_dir", "dsl_result", "dsl_resume"}


def without_places(tree: Any) -> Any:
    """A checkpoint without durations and paths."""
    if isinstance(tree, dict):
        return {k: without_places(v) for k, v in tree.items() if k not in VOLATILE}
    return [without_places(v) for v in tree] if isinstance(tree, list) else tree


def outcome(folder: Path) -> tuple[dict[str, Any], Any]:
    """Losses and metrics of a finished run, and its last checkpoint."""
    result = json.loads((folder / "result.json").read_text())
    told = {key: result[key] for key in ("train_loss", "best_valid_result", "test_result", "epochs_run")}
    lasts = (folder / "saved").glob("*-last.dsl")
    (last,) = [path for path in lasts if path.stat().st_size]  # a kill may leave a name that was only claimed
    return told, without_places(read_checkpoint(last))


def assert_same_outcome(folder: Path, expected: Path) -> None:
    """Bit for bit."""
    (one, last), (other, their_last) = outcome(folder), outcome(expected)
    assert one == other
    for part in last:
        assert same(last[part], their_last[part]), part


def temporary(folder: Path) -> list[Path]:
    """Files of writes that broke off."""
    return [file for file in folder.glob(".*.dsl.*") if file.suffix != ".lock"]


def check_files(folder: Path) -> None:
    """Every checkpoint is whole, or a name that was claimed a moment ago."""
    for file in folder.glob("*.dsl"):
        if file.stat().st_size or not file.name.endswith(resuming.LAST):
            read_checkpoint(file)
    assert len(temporary(folder)) <= 2, "temporary files pile up"


KILLS = {"BPR": ("3 steps", 12), "LightGCN": ("1 epochs", 10), "MultiVAE": ("2 steps", 10)}


@pytest.mark.parametrize("name", [n if n == "BPR" else pytest.param(n, marks=pytest.mark.slow) for n in KILLS])
def test_killed_runs_end_as_if_they_had_not_been(name: str, data: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments, again and again; the restarted command is always the same."""
    pace, kills = KILLS[name]
    expected = tmp_path / "whole"
    started = time.monotonic()
    assert finished(in_process(lambda: train(name, settings(name, data, expected, dsl_save_every=pace)))) == 0
    duration = time.monotonic() - started
    draw, killed, number = random.Random(name), 0, 0
    while killed < kills:
        folder = tmp_path / str(number)
        given = settings(name, data, folder, dsl_save_every=pace, dsl_resume=True)
        while not (folder / "result.json").exists():
            process = in_process(lambda given=given: train(name, given))
            if killed < kills:
                time.sleep(draw.uniform(0.1, 0.9) * duration)
                os.kill(process, signal.SIGKILL)
            status = finished(process)
            assert status in (0, -signal.SIGKILL)
            killed += status == -signal.SIGKILL
            check_files(folder / "saved")
        assert_same_outcome(folder, expected)
        number += 1


class Crashing:
    """Stands for the module ``os`` in files.py: the process ends at one of its calls, before or after it."""

    CALLS = ("fdopen", "fsync", "chmod", "replace", "open")

    def __init__(self, save: str, call: str, after: bool) -> None:
        self.save, self.call, self.after = save, call, after
        self.armed = False

    def __getattr__(self, name: str) -> Any:
        plain = getattr(os, name)
        if name != self.call or not self.armed:
            return plain

        def call(*args: Any, **kwargs: Any) -> Any:
            result = plain(*args, **kwargs) if self.after else None
            os._exit(77)
            return result

        return call


SAVES = {"last": 2, "best": 1}
"""Which save of which file the process crashes in."""


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of BPR."""
    folder = tmp_path_factory.mktemp("whole")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert (
            finished(in_process(lambda: train("BPR", settings("BPR", data, folder, dsl_save_every="7 steps"))))
            == 0
        )
    finally:
        os.chdir(before)
    return folder


@pytest.mark.parametrize("after", [pytest.param(False, marks=pytest.mark.slow), True], ids=["before", "after"])
@pytest.mark.parametrize("call", [*Crashing.CALLS, "write"])
@pytest.mark.parametrize("save", SAVES)
def test_a_crash_at_any_step_of_a_save(
    save: str, call: str, after: bool, whole: Path, data: Path, tmp_path: Path
) -> None:
    """Before or after each call to the system, or when half of the file is written; then the run goes on."""
    given = settings("BPR", data, tmp_path, dsl_save_every="7 steps", dsl_resume=True)

    def crash() -> None:
        _crash_in(save, call, after)
        train("BPR", given)

    assert finished(in_process(crash)) == 77
    check_files(tmp_path / "saved")
    assert finished(in_process(lambda: train("BPR", given))) == 0
    assert_same_outcome(tmp_path, whole)
    assert not temporary(tmp_path / "saved")


def _crash_in(save: str, call: str, after: bool) -> None:
    """Let this process end at a call of the second save of the last state, or of the first of the best."""
    from recbole_dsl.training import checkpoint

    proxy, plain, seen = Crashing(save, call, after), checkpoint.write_tensor_file, []
    files.os = proxy  # type: ignore[assignment]

    def write(path: Any, *args: Any) -> None:
        if str(path).endswith(resuming.LAST) is (save == "last"):
            seen.append(path)
        proxy.armed = len(seen) == SAVES[save] and str(path) == str(seen[-1])
        if proxy.armed and call == "write":
            _crash_in_write(after)
        plain(path, *args)

    checkpoint.write_tensor_file = write


def _crash_in_write(after: bool) -> None:
    """When the header is written, or all but the end."""
    from recbole_dsl import tensor_file

    plain = tensor_file._blocks_of

    def blocks(tensor: Any) -> Iterator[memoryview]:
        for block in plain(tensor):
            yield block[: len(block) // 2] if after else block
            os._exit(77)

    tensor_file._blocks_of = blocks


# --- a full disk ----------------------------------------------------------------------------------


def full_disk(monkeypatch: pytest.MonkeyPatch, fails: Callable[[str], bool]) -> None:
    """Every write of a file that ``fails`` finds no room."""
    from recbole_dsl import tensor_file

    plain = tensor_file.written_whole

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, block: Any) -> int:
            if self.file.tell() > 1000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self.file.write(block))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    import contextlib

    @contextlib.contextmanager
    def written_whole(path: Any) -> Iterator[Any]:
        with plain(path) as file:
            yield Full(file) if fails(str(path)) else file

    monkeypatch.setattr(tensor_file, "written_whole", written_whole)


def test_a_scheduled_save_without_room_is_told_and_training_goes_on(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is full for some saves in the middle; the result is that of any other run."""
    saves = []

    def fails(path: str) -> bool:
        saves.append(path)
        return path.endswith(resuming.LAST) and 3 < len(saves) < 7

    full_disk(monkeypatch, fails)
    train("BPR", settings("BPR", data, tmp_path, dsl_save_every="7 steps"))
    assert (
        "No space left on device" in caplog.text and "Training goes on; the last checkpoint is" in caplog.text
    )
    assert_same_outcome(tmp_path, whole)


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_needed_save_without_room_ends_the_run_which_goes_on_elsewhere(
    which: str, whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence; the checkpoint before is whole; --resume=FILE --checkpoint_dir=ELSEWHERE goes on."""
    saves: list[str] = []

    def fails(path: str) -> bool:
        saves.append(path)
        if which == "best":
            return not path.endswith(resuming.LAST)
        return at_the_end

    at_the_end, plain = False, Keeper.end

    def end(keeper: Keeper, reason: str) -> None:
        nonlocal at_the_end
        at_the_end = True
        plain(keeper, reason)

    monkeypatch.setattr(Keeper, "end", end)
    with monkeypatch.context() as patch:
        full_disk(patch, fails)
        with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)"):
            train("BPR", settings("BPR", data, tmp_path / "full", dsl_save_every="7 steps"))
    check_files(tmp_path / "full" / "saved")
    (last,) = (tmp_path / "full" / "saved").glob("*-last.dsl")
    elsewhere = settings("BPR", data, tmp_path / "other", dsl_save_every="7 steps", dsl_resume=str(last))
    before = last.read_bytes()
    train("BPR", elsewhere)
    assert last.read_bytes() == before
    assert_same_outcome(tmp_path / "other", whole)


def test_a_real_full_disk(data: Path, tmp_path: Path) -> None:
    """A file system of its own, too small for a checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("file systems can be mounted by root only")
    try:
        given = settings("BPR", data, tmp_path, checkpoint_dir=str(disk), embedding_size=64)
        with pytest.raises(CheckpointError, match="No space left on device"):
            train("BPR", given)
        assert not [f for f in disk.iterdir() if f.stat().st_size]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- signals to the real command ------------------------------------------------------------------


def command(*arguments: str, cwd: Path) -> list[str]:
    """The command line of a short run on ml-100k."""
    return [
        sys.executable, "-W", "ignore", str(ROOT / "run_recbole_dsl.py"), "--model=BPR", "--embedding_size=8",
        "--epochs=6", "--show_progress=False", "--dsl_result=result.json", *arguments,
    ]  # fmt: skip


def wait_for(process: subprocess.Popen[str], word: str) -> list[str]:
    """Read what a process tells until a line has ``word``."""
    lines: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if word in line:
            return lines
    raise AssertionError("".join(lines))


@pytest.mark.parametrize(
    "number, status", [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_command_which_then_goes_on(number: int, status: int, tmp_path: Path) -> None:
    """Exit status, message and a result that is the same as without."""
    process = subprocess.Popen(command(cwd=tmp_path), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for(process, "epoch 2 training")
    process.send_signal(number)
    _, rest = process.communicate()
    assert process.returncode == status
    last = rest.strip().splitlines()[-1]
    assert last.startswith(f"error: {signal.Signals(number).name}: stopped at ") and "--resume='saved/" in last
    done = subprocess.run(
        command("--resume", cwd=tmp_path), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "Resuming saved/BPR-" in done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    if number == signal.SIGTERM:
        subprocess.run(command(cwd=tmp_path), cwd=tmp_path, capture_output=True, check=True)
        again = json.loads((tmp_path / "result.json").read_text())
        assert all(again[key] == result[key] for key in ("train_loss", "test_result", "best_valid_result"))


def test_a_signal_while_the_disk_is_full_ends_the_run_as_it_asks(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the status of a signal, and the older file to go on from."""
    trainer, loaders = sparse_trainer_of("BPR", settings("BPR", data, tmp_path), save_every="2 steps")
    plain, full = Keeper.after_step, []

    def after_step(keeper: Keeper, *args: Any) -> None:
        if keeper.position.steps == 3:
            full.append(1)
            keeper.signals.caught = signal.SIGTERM
        plain(keeper, *args)

    full_disk(monkeypatch, lambda _: bool(full))
    monkeypatch.setattr(Keeper, "after_step", after_step)
    with pytest.raises(
        Interrupted, match=r"stopped at step 4 of epoch 0; .*No space left.* Now the last"
    ) as stop:
        trainer.fit(*loaders[:2], show_progress=False)
    assert stop.value.exit_status == 143
    assert f"'{trainer.keeper.file}', of step 2 of epoch 0" in str(stop.value)


# --- what may be resumed --------------------------------------------------------------------------


def run(name: str, given: dict[str, Any]) -> Any:
    """A run in this process."""
    torch.set_num_threads(1)
    with no_flags():
        return run_recbole_dsl(name, "tiny", config_dict=given)


def interrupted(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The last checkpoint of a run that was stopped in its second epoch."""
    with monkeypatch.context() as patch:
        plain = Keeper.after_step

        def after_step(keeper: Keeper, *args: Any) -> None:
            if keeper.position.epoch == 1:
                keeper.signals.caught = signal.SIGTERM
            plain(keeper, *args)

        patch.setattr(Keeper, "after_step", after_step)
        with pytest.raises(KeyboardInterrupt):
            run("BPR", given)
    (last,) = set(Path(given["checkpoint_dir"]).glob("*-last.dsl"))
    return last


def test_other_settings_are_refused_by_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without naming the file."""
    given = settings("BPR", data, tmp_path)
    last = interrupted(given, monkeypatch)
    for wish in (True, str(last)):
        with pytest.raises(ConfigError, match=r"learning_rate: 0.01 there, 0.02 here\); allowed"):
            run("BPR", {**given, "learning_rate": 0.02, "dsl_resume": wish})
    assert run("BPR", {**given, "dsl_resume": True}).epochs_run == 6


def test_more_epochs_are_trained_and_a_finished_run_is_tested(data: Path, tmp_path: Path) -> None:
    """The schedule of updates stays that of the start."""
    metrics = ["NDCG", "ItemCoverage"]  # one of which needs what RecBole counts as training begins
    given = settings("BPR", data, tmp_path, stopping_step=100, metrics=metrics, valid_metric="NDCG@10")
    first = run("BPR", given)
    (last,) = (tmp_path / "saved").glob("*-last.dsl")
    with no_flags():
        export_artifact(last, tmp_path / "artifact")
    again = run("BPR", {**given, "dsl_resume": True})
    assert (again.test_result, again.train_loss) == (first.test_result, first.train_loss)
    assert "itemcoverage@10" in first.test_result
    longer = run("BPR", {**given, "epochs": 8, "dsl_resume": True})
    assert longer.epochs_run == 8 and longer.train_loss[:6] == first.train_loss
    assert longer.sparsity["updates"] == first.sparsity["updates"]


def test_of_several_runs_that_of_the_same_settings_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Seeds tell runs apart; where there is none, training begins anew, with a warning."""
    given = settings("BPR", data, tmp_path)
    interrupted(given, monkeypatch)
    other = run("BPR", {**given, "seed": 7, "dsl_resume": True})
    assert "nothing to resume" in caplog.text and len(list((tmp_path / "saved").glob("*-last.dsl"))) == 2
    whole = run("BPR", {**given, "checkpoint_dir": str(tmp_path / "whole")})
    resumed = run("BPR", {**given, "dsl_resume": True})
    assert resumed.train_loss == whole.train_loss != other.train_loss


def test_a_run_that_is_being_trained_is_not_taken_up_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a new one nor one that goes on; elsewhere, and afterwards, it is."""
    given = settings("BPR", data, tmp_path)
    last = interrupted(given, monkeypatch)
    refused: list[Path] = []
    plain = Keeper.begin_epoch

    def begin_epoch(keeper: Keeper, epoch: int) -> Any:
        if epoch == 2 and keeper.file is not None:  # elsewhere there is none until it saves
            with pytest.raises(CheckpointError, match=f"Another run is training into '{keeper.file}' "):
                Hold(keeper.file)
            refused.append(keeper.file)
        return plain(keeper, epoch)

    monkeypatch.setattr(Keeper, "begin_epoch", begin_epoch)
    whole = run("BPR", {**given, "checkpoint_dir": str(tmp_path / "whole")})
    held, before = Hold(last), last.read_bytes()
    for wish in (True, str(last)):
        with pytest.raises(CheckpointError, match="allowed is to wait for its end"):
            run("BPR", {**given, "dsl_resume": wish})
    elsewhere = {**given, "checkpoint_dir": str(tmp_path / "elsewhere"), "dsl_resume": str(last)}
    assert run("BPR", elsewhere).train_loss == whole.train_loss
    assert last.read_bytes() == before
    held.release()
    assert run("BPR", {**given, "dsl_resume": True}).train_loss == whole.train_loss
    assert [file.parent.name for file in refused] == ["whole", "saved"]
    for file in refused:
        Hold(file).release()


def test_where_files_cannot_be_locked_training_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning."""

    def acquire(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    assert run("BPR", settings("BPR", data, tmp_path)).epochs_run == 6
    assert "No locks available): no other run must be resumed from it now" in caplog.text


def test_the_best_epoch_goes_along_to_another_folder(data: Path, tmp_path: Path) -> None:
    """A finished run with more epochs, none of which is better; and from there again."""
    given = settings("BPR", data, tmp_path, stopping_step=100)
    first = run("BPR", given)
    (last,) = (tmp_path / "saved").glob("*-last.dsl")
    for name, epochs in (("one", 7), ("two", 8)):
        there = {**given, "checkpoint_dir": str(tmp_path / name), "epochs": epochs, "learning_rate": 0.01}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "recbole.trainer.trainer.early_stopping", lambda _, best, *a, **k: (best, 1, False, False)
            )
            moved = run("BPR", {**there, "dsl_resume": str(last)})
        assert moved.test_result == first.test_result and moved.epochs_run == epochs
        (last,) = (tmp_path / name).glob("*-last.dsl")
        assert len(list((tmp_path / name).glob("*.dsl"))) == 2


def test_damaged_and_foreign_files_are_refused_or_passed_over(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Named files are refused in one sentence; of several the damaged one is passed over."""
    given = settings("BPR", data, tmp_path, epochs=2)
    run("BPR", given)
    (last,) = (tmp_path / "saved").glob("*-last.dsl")
    (best,) = set((tmp_path / "saved").glob("*.dsl")) - {last}
    with pytest.raises(CheckpointError, match="holds the weights of the best epoch only"):
        run("BPR", {**given, "dsl_resume": str(best)})
    with pytest.raises(CheckpointError, match="no such file"):
        run("BPR", {**given, "dsl_resume": str(tmp_path / "nowhere.dsl")})
    for name, content in (("damaged", last.read_bytes()[:100]), ("empty", b"")):
        (last.parent / f"BPR-{name}-last.dsl").write_bytes(content)
    assert run("BPR", {**given, "dsl_resume": True}).epochs_run == 2
    assert caplog.text.count("It is passed over.") == 2


def test_other_data_are_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their checksum is in the file."""
    given = settings("BPR", data, tmp_path)
    interrupted(given, monkeypatch)
    monkeypatch.setattr("recbole_dsl.training.trainer.fingerprint", lambda _: "another")
    with pytest.raises(ConfigError, match="trained on other interactions"):
        run("BPR", {**given, "dsl_resume": True})


def test_a_checkpoint_survives_bad_numbers(data: Path, tmp_path: Path) -> None:
    """The file that the message names is whole, and of finite weights."""
    given = settings("BPR", data, tmp_path)
    trainer, loaders = sparse_trainer_of("BPR", given, save_every="2 steps")
    plain, calls = trainer.model.calculate_loss, []

    def loss(batch: Any) -> Any:
        calls.append(1)
        return plain(batch) * (float("nan") if len(calls) == 9 else 1.0)

    trainer.model.calculate_loss = loss
    with pytest.raises(
        NumberError, match=r"at step 9 of epoch 0; the last checkpoint is '.*', of step 8 of epoch 0"
    ):
        trainer.fit(*loaders[:2], show_progress=False)
    state = read_checkpoint(trainer.keeper.file)
    assert all(torch.isfinite(t).all() for t in state["state_dict"].values() if t.is_floating_point())


def test_the_checksum_of_data_sees_one_number() -> None:
    """And the name of a field."""

    def of(rating: float, name: str = "rating") -> str:
        table = Interaction({"user_id": torch.tensor([1, 2]), name: torch.tensor([3.0, rating])})
        return resuming.fingerprint(SimpleNamespace(_dataset=SimpleNamespace(inter_feat=table)))

    assert of(4.0) == of(4.0) != of(5.0) and of(4.0) != of(4.0, "label")


def test_only_these_settings_may_differ() -> None:
    """What docs/resuming.md names: whatever is added here changes what a resumed run computes, or nothing."""
    computes = ("learning_rate", "weight_decay", "train_batch_size", "eval_args", "seed", "embedding_size")
    sparse = (
        "dsl_drop",
        "dsl_grow",
        "dsl_density",
        "dsl_end",
        "dsl_update_interval",
        "dsl_graph",
        "dsl_data_path",
    )
    assert not resuming.HARMLESS & {*computes, *sparse, "valid_metric", "train_neg_sample_args", "reg_weight"}


def test_a_trainer_refuses_other_settings(data: Path, tmp_path: Path) -> None:
    """Also where it is told to take up a file, not the command line."""
    given = settings("BPR", data, tmp_path)
    trainer, loaders = sparse_trainer_of("BPR", given)
    trainer.fit(*loaders[:2], show_progress=False)
    file = trainer.keeper.file
    other, loaders = sparse_trainer_of("BPR", {**given, "weight_decay": 0.1, "epochs": 9})
    other.resume_checkpoint(file)
    with pytest.raises(ConfigError, match="weight_decay"):
        other.fit(*loaders[:2], show_progress=False)


def test_the_last_file_is_not_replaced_by_a_spoilt_one(data: Path, tmp_path: Path) -> None:
    """As the best file is not."""
    trainer, loaders = sparse_trainer_of("BPR", settings("BPR", data, tmp_path))
    trainer.fit(*loaders[:2], show_progress=False)
    good = trainer.keeper.file.read_bytes()
    next(iter(trainer.model.parameters())).data[0] = float("inf")
    with pytest.raises(NumberError, match="holds NaN or infinite weights"):
        trainer.keeper.save()
    assert trainer.keeper.file.read_bytes() == good
