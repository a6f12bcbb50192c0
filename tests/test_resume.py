"""A resumed run equals the uninterrupted one bit for bit: losses, weights, topology, random states, metrics."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_dsl import support
from recbole_dsl.errors import CheckpointError, NumberError
from recbole_dsl.training.checkpoint import read_checkpoint, write_checkpoint
from recbole_dsl.training.keeper import Keeper
from recbole_dsl.training.signals import Interrupted, Signals
from recbole_dsl.training.steps import StepwiseTrainer
from tests.model_runs import dense_weights, settings_of, sparse_trainer_of
from tests.test_every_model import IN_MAKE_TEST

TRAINED = [row.model for row in support.rows() if row.status != support.REFUSED]
DSL = {"method": "dsl", "density": 0.2, "update_interval": 3, "grow": "accumulated_gradient"}

pytestmark = pytest.mark.usefixtures("in_folder")


def state_of(trainer: Any, test_data: Any) -> dict[str, Any]:
    """Everything that a run ends with."""
    drawn = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]
    test = trainer.evaluate(test_data, load_best_model=False) if test_data is not None else None
    return {
        "losses": trainer.train_loss_dict,
        "best": (trainer.best_valid_score, trainer.best_valid_result, trainer.cur_step),
        "test": dict(test or {}),
        "weights": {name: t.tolist() for name, t in dense_weights(trainer.model).items()},
        "live": [group.live_positions().tolist() for group in trainer.sparse.groups],
        "updates": [p.updates for p in trainer.sparse.explorer.progress],
        "record": [p.record.bits.tolist() for p in trainer.sparse.explorer.progress if p.record],
        "optimizers": {k: repr(v.state_dict()) for k, v in trainer.stateful_parts().items()},
        "drawn": drawn,
    }


def finish(trainer: Any, data: list[Any]) -> dict[str, Any]:
    """Train to the end."""
    trainer.fit(data[0], data[1], show_progress=False)
    return state_of(trainer, data[2])


def stopped(trainer: Any, data: list[Any], when: Callable[[Keeper, str], bool]) -> Path:
    """Train until ``when(keeper, event)`` and let a signal come then; returns the checkpoint."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="--resume="):
        for event in ("after_step", "in_evaluation", "end_epoch"):
            patch.setattr(Keeper, event, _signalled(getattr(Keeper, event), event, when))
        trainer.fit(data[0], data[1], show_progress=False)
    return trainer.keeper.file


def _signalled(method: Any, event: str, when: Callable[[Keeper, str], bool]) -> Any:
    def call(keeper: Keeper, *args: Any) -> Any:
        if event == "after_step":
            keeper.position.steps += 1
            now = when(keeper, event)
            keeper.position.steps -= 1
        else:
            now = when(keeper, event)
        if now:
            keeper.signals.caught = 15
        return method(keeper, *args)

    return call


def check_resume(name: str, settings: dict[str, Any], when: Callable[[Keeper, str], bool], **dsl: Any) -> None:
    """Stop a run, and go on from its checkpoint in a model whose weights have been spoilt before."""
    dsl = {**DSL, **dsl}
    expected = finish(*sparse_trainer_of(name, settings, **dsl))
    file = stopped(*sparse_trainer_of(name, settings, **dsl), when)
    trainer, data = sparse_trainer_of(name, settings, **dsl)
    for parameter in trainer.model.parameters():
        parameter.data.add_(1)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    trainer.resume_checkpoint(file)
    found = finish(trainer, data)
    for part in expected:
        assert found[part] == expected[part], part


def settings(name: str, data: Path, tmp_path: Path, **more: Any) -> dict[str, Any]:
    """Two epochs of a model."""
    return {**settings_of(name, data), "epochs": 2, "checkpoint_dir": str(tmp_path / "saved"), **more}


def at_step(number: int) -> Callable[[Keeper, str], bool]:
    """After the run's ``number``-th step."""
    return lambda keeper, event: event == "after_step" and keeper.position.steps == number


def in_epoch(number: int) -> Callable[[Keeper, str], bool]:
    """After a step of that epoch, the first of which is 0."""
    return lambda keeper, event: event == "after_step" and keeper.position.epoch == number


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in IN_MAKE_TEST else pytest.mark.slow) for n in TRAINED]
)
def test_every_model_resumes_in_the_middle_of_an_epoch(name: str, data: Path, tmp_path: Path) -> None:
    """Stopped at the second step of the second epoch."""
    seen = [0]

    def second_epoch(keeper: Keeper, event: str) -> bool:
        seen[0] += event == "after_step" and keeper.position.epoch == 1
        return event == "after_step" and seen[0] == 2

    check_resume(name, settings(name, data, tmp_path), second_epoch)


def test_with_processes_that_load_a_run_goes_on_in_the_middle_of_an_epoch(data: Path, tmp_path: Path) -> None:
    """``worker=1``: batches of the epoch's rest are whole, and each is trained on once; not bit for bit."""
    given = settings("BPR", data, tmp_path, worker=1, epochs=1)
    expected = finish(*sparse_trainer_of("BPR", given, **DSL))
    file = stopped(*sparse_trainer_of("BPR", given, **DSL), at_step(2))
    trainer, loaded = sparse_trainer_of("BPR", given, **DSL)
    trainer.resume_checkpoint(file)
    found = finish(trainer, loaded)
    assert found["updates"] == expected["updates"]
    assert found["losses"] == pytest.approx(expected["losses"], rel=0.05)


def test_a_signal_in_the_last_moment_is_obeyed(data: Path, tmp_path: Path) -> None:
    """Nothing is left to stop, but the process was asked to end."""
    trainer, loaders = sparse_trainer_of("BPR", settings("BPR", data, tmp_path), **DSL)
    plain = Keeper.end

    def end(keeper: Keeper, reason: str) -> None:
        keeper.signals.caught = 2
        plain(keeper, reason)

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(Interrupted, match="SIGINT: stopped at the end of"),
    ):
        patch.setattr(Keeper, "end", end)
        trainer.fit(*loaders[:2], show_progress=False)


def test_a_second_signal_acts_at_once_unless_it_is_an_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal's Ctrl-C comes twice to processes that a command has started."""
    # Where tests are run in the background a shell may have it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Signals() as signals:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
            assert signals.caught == signal.SIGINT
            monkeypatch.setattr("recbole_dsl.training.signals.ECHO", 0.0)
            with pytest.raises(Interrupted, match="without saving") as stop:
                signal.raise_signal(signal.SIGTERM)
            assert stop.value.exit_status == 143
        with pytest.raises(KeyboardInterrupt):  # as before
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_of_no_epochs_can_be_given_some(data: Path, tmp_path: Path) -> None:
    """It begins with the first; when updates are due was settled before."""
    none, loaders = sparse_trainer_of("BPR", settings("BPR", data, tmp_path, epochs=0), **DSL)
    none.fit(*loaders[:2], show_progress=False)
    trainer, loaders = sparse_trainer_of("BPR", settings("BPR", data, tmp_path), **DSL)
    trainer.resume_checkpoint(none.keeper.file)
    assert sorted(finish(trainer, loaders)["losses"]) == [0, 1]


@pytest.mark.parametrize("name", ["BPR", "NCL"])
def test_a_finished_run_that_is_given_more_epochs_is_one_of_so_many(
    name: str, data: Path, tmp_path: Path
) -> None:
    """NCL makes its clusters before an epoch of RecBole's trainer begins."""
    more, dsl = {"warm_up_step": 0} if name == "NCL" else {}, {**DSL, "end": "20 steps"}
    short, loaders = sparse_trainer_of(name, settings(name, data, tmp_path, **more), **dsl)
    short.fit(*loaders[:2], show_progress=False)
    four = settings(name, data, tmp_path, **more, epochs=4)
    trainer, loaders = sparse_trainer_of(name, four, **dsl)
    trainer.resume_checkpoint(short.keeper.file)
    found = finish(trainer, loaders)
    expected = finish(*sparse_trainer_of(name, {**four, "checkpoint_dir": str(tmp_path / "other")}, **dsl))
    for part in expected:
        assert found[part] == expected[part], part


STEPS_PER_EPOCH = 12
POSITIONS: dict[str, Callable[[Keeper, str], bool]] = {
    "first step": at_step(1),
    "last step of an epoch": at_step(STEPS_PER_EPOCH),
    "end of an epoch": lambda keeper, event: event == "end_epoch" and keeper.position.epoch == 0,
    "validation": lambda keeper, event: event == "in_evaluation" and keeper.position.epoch == 1,
}


@pytest.mark.parametrize("grow", ["accumulated_gradient", "momentum", "random_never_live"])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_run_resumes_wherever_it_was_stopped(position: str, grow: str, data: Path, tmp_path: Path) -> None:
    """With growth windows open and closed, sampled rows, and negatives drawn in validation."""
    uni = {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "mode": "uni5"}}
    check_resume("BPR", settings("BPR", data, tmp_path, **uni), POSITIONS[position], grow=grow, growth_rows=0.5)


def test_an_epoch_has_as_many_steps(data: Path, tmp_path: Path) -> None:
    """So "last step of an epoch" is."""
    _, loaders = sparse_trainer_of("BPR", settings("BPR", data, tmp_path), **DSL)
    assert len(loaders[0]) == STEPS_PER_EPOCH


def test_the_scale_of_mixed_precision_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that a skipped step has halved."""
    plain, scales = StepwiseTrainer._step, []

    def step(self: Any, batch: Any, loss: Callable[..., Any], scaler: Any) -> Any:
        spoilt = 1e38 if len(scales) == 1 else 1.0
        scales.append(scaler.get_scale())
        return plain(self, batch, lambda given: loss(given) * spoilt, scaler)

    def made() -> tuple[Any, Any]:
        trainer, loaders = sparse_trainer_of("BPR", settings("BPR", data, tmp_path), **DSL)
        trainer.enable_scaler = True
        return trainer, loaders

    monkeypatch.setattr(StepwiseTrainer, "_step", step)
    file = stopped(*made(), at_step(3))
    assert read_checkpoint(file)["run"]["scaler"]["scale"] == scales[0] / 2 == scales[2]
    before = len(scales)
    trainer, loaders = made()
    trainer.resume_checkpoint(file)
    trainer.fit(*loaders[:2], show_progress=False)
    assert scales[before] == scales[2]


def test_a_run_is_stopped_twice_in_the_same_validation(data: Path, tmp_path: Path) -> None:
    """As a queue does that gives a slow evaluation too little time: the second file is as good as the first."""
    given = settings("BPR", data, tmp_path)
    expected = finish(*sparse_trainer_of("BPR", given, **DSL))
    file = stopped(*sparse_trainer_of("BPR", given, **DSL), POSITIONS["validation"])
    for _ in range(2):
        trainer, loaders = sparse_trainer_of("BPR", given, **DSL)
        trainer.resume_checkpoint(file)
        file = stopped(trainer, loaders, POSITIONS["validation"])
    trainer, loaders = sparse_trainer_of("BPR", given, **DSL)
    trainer.resume_checkpoint(file)
    assert finish(trainer, loaders) == expected


@pytest.mark.parametrize("storage", ["packed", "masked"])
@pytest.mark.parametrize("learner", ["adam", "sgd", "adagrad", "rmsprop"])
def test_the_state_of_every_optimizer_and_storage_is_kept(
    learner: str, storage: str, data: Path, tmp_path: Path
) -> None:
    """Per-weight state goes with its weight through the file."""
    check_resume("LightGCN", settings("LightGCN", data, tmp_path, learner=learner), at_step(5), storage=storage)


def test_a_run_without_its_best_epoch_is_not_taken_up(data: Path, tmp_path: Path) -> None:
    """Before anything is trained: at the end there might be nothing to test."""
    given = settings("BPR", data, tmp_path)
    file = stopped(*sparse_trainer_of("BPR", given, **DSL), in_epoch(1))
    (best,) = [p for p in file.parent.glob("*.dsl") if p != file]
    best.unlink()
    trainer, loaders = sparse_trainer_of("BPR", given, **DSL)
    trainer.resume_checkpoint(file)
    with pytest.raises(CheckpointError, match=r"best epoch so far, but .* is not there; allowed"):
        trainer.fit(loaders[0], loaders[1], show_progress=False)
    assert list(trainer.train_loss_dict) == [0]


def test_seconds_before_a_stop_count(data: Path, tmp_path: Path) -> None:
    """The epoch that was interrupted took as long as both parts of it; one that was whole, what it took."""
    given = settings("BPR", data, tmp_path, epochs=3)
    file = stopped(*sparse_trainer_of("BPR", given, **DSL), in_epoch(1))
    state = read_checkpoint(file)
    told = state["run"]["trainer"]
    assert len(told["epoch_seconds"]) == 1 and told["seconds_in_epoch"] > 0
    told["seconds_in_epoch"] = 1000.0
    assert told["preparation_seconds"] == 0
    told["preparation_seconds"] = 50.0  # of which a run that goes on knows no width to choose, say
    write_checkpoint(file, state)
    trainer, loaders = sparse_trainer_of("BPR", given, **DSL)
    trainer.resume_checkpoint(file)
    trainer.fit(loaders[0], loaders[1], show_progress=False)
    first, interrupted, last = trainer.epoch_seconds
    assert first < 500 and 1000 < interrupted < 1500 and last < 500
    assert trainer.preparation_seconds == 50


@pytest.mark.parametrize("path", ["fast", "recbole"])
def test_a_run_that_saves_its_loaders_is_the_same_and_resumes(path: str, data: Path, tmp_path: Path) -> None:
    """RecBole takes their generators away when it saves them, but not when it reads them."""
    plain = settings("BPR", data, tmp_path / "plain", dsl_data_path=path)
    expected = finish(*sparse_trainer_of("BPR", plain, **DSL))
    given = settings("BPR", data, tmp_path / "saves", dsl_data_path=path, save_dataloaders=True)
    file = stopped(*sparse_trainer_of("BPR", given, **DSL), at_step(3))
    assert list((tmp_path / "saves" / "saved").glob("*-dataloader.pth"))
    trainer, loaders = sparse_trainer_of("BPR", given, **DSL)
    trainer.resume_checkpoint(file)
    found = finish(trainer, loaders)
    for part in expected:
        assert found[part] == expected[part], part


def test_a_run_that_stops_early_in_its_last_epoch_stays_finished(data: Path, tmp_path: Path) -> None:
    """Whether epochs are left then says nothing of why it has stopped."""
    given = settings("BPR", data, tmp_path, epochs=12, stopping_step=1, learning_rate=0.05)
    dsl = {**DSL, "end": 4}  # the same of runs of another length
    whole, loaders = sparse_trainer_of("BPR", given, **dsl)
    whole.fit(*loaders[:2], show_progress=False)
    epochs = len(whole.train_loss_dict)
    assert epochs < 12
    last, loaders = sparse_trainer_of("BPR", {**given, "epochs": epochs}, **dsl)
    last.fit(*loaders[:2], show_progress=False)
    more, loaders = sparse_trainer_of("BPR", given, **dsl)
    more.resume_checkpoint(last.keeper.file)
    more.fit(*loaders[:2], show_progress=False)
    assert len(more.train_loss_dict) == epochs and more.keeper.position.finished == "early stopping"


@pytest.mark.parametrize("more", [0, 1], ids=["nothing left", "an epoch left"])
def test_the_score_is_that_of_the_file_that_is_tested(
    more: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed between two saves: the best file is of a later epoch than the state that the run goes on from."""
    given = settings("BPR", data, tmp_path, epochs=8, learning_rate=0.05)
    trainer, loaders = sparse_trainer_of("BPR", given, save_every="2 epochs", **DSL)
    scores, plain = iter([0.1, 0.2, 0.3, 0.4, 0.15]), type(trainer)._valid_epoch

    def valid_epoch(trainer: Any, *args: Any, **kwargs: Any) -> tuple[float, Any]:
        _, result = plain(trainer, *args, **kwargs)
        trainer.valid_results[trainer.keeper.position.epoch] = {"ndcg@5": (score := next(scores))}
        return score, {**result, "ndcg@5": score}

    monkeypatch.setattr(type(trainer), "_valid_epoch", valid_epoch)
    with pytest.raises(RuntimeError, match="killed"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "begin_epoch", _killed_before(Keeper.begin_epoch, epoch=4, saved_until=3))
        trainer.fit(*loaders[:2], show_progress=False)
    assert read_checkpoint(trainer.saved_model_file)["epoch"] == 3
    reached = read_checkpoint(trainer.keeper.file)["epoch"]
    again, loaders = sparse_trainer_of("BPR", {**given, "epochs": reached + more}, save_every="2 epochs", **DSL)
    again.resume_checkpoint(trainer.keeper.file)
    assert again.fit(*loaders[:2], show_progress=False) == (0.4, {"ndcg@5": 0.4})
    assert "is of epoch 3, which the run had reached" in caplog.text


def _killed_before(method: Any, epoch: int, saved_until: int) -> Any:
    def begin_epoch(keeper: Keeper, at: int) -> Any:
        if at == epoch:
            raise RuntimeError("killed")
        if at >= saved_until:
            keeper.pace = None
        return method(keeper, at)

    return begin_epoch


def test_an_interrupted_trainer_evaluates_as_another(data: Path, tmp_path: Path) -> None:
    """In a notebook: the signal has been obeyed, and the batches of the broken evaluation are forgotten."""
    given = settings("BPR", data, tmp_path, eval_batch_size=600)
    expected = finish(*sparse_trainer_of("BPR", given, **DSL))
    trainer, loaders = sparse_trainer_of("BPR", given, **DSL)
    assert len(loaders[1]) > 1
    batches: list[int] = []

    def second_batch(keeper: Keeper, event: str) -> bool:
        batches.extend([1] * (event == "in_evaluation"))
        return len(batches) == 2

    file = stopped(trainer, loaders, second_batch)
    assert trainer.evaluate(loaders[2], load_best_model=False)
    trainer.resume_checkpoint(file)
    trainer.resume_checkpoint(file)  # this trainer holds the file, so it may
    assert finish(trainer, loaders)["best"] == expected["best"]


def test_no_good_checkpoint_is_replaced_by_a_spoilt_one(data: Path, tmp_path: Path) -> None:
    """Of the best epoch, too: a step may have made weights infinite of which no loss has told yet."""
    trainer, loaders = sparse_trainer_of("BPR", settings("BPR", data, tmp_path), **DSL)
    trainer.fit(*loaders[:2], show_progress=False)
    good = Path(trainer.saved_model_file).read_bytes()
    next(iter(trainer.model.parameters())).data[0] = float("inf")
    with pytest.raises(NumberError, match="before the end of epoch 1; the last checkpoint is"):
        trainer._save_checkpoint(1)
    assert Path(trainer.saved_model_file).read_bytes() == good


def test_the_schedule_that_counts_is_told(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run that gets more epochs keeps that of its start."""
    first, loaders = sparse_trainer_of("BPR", settings("BPR", data, tmp_path), **DSL)
    first.fit(*loaders[:2], show_progress=False)
    longer, loaders = sparse_trainer_of("BPR", settings("BPR", data, tmp_path, epochs=9), **DSL)
    longer.resume_checkpoint(first.keeper.file)
    with caplog.at_level("INFO"):
        longer.fit(*loaders[:2], show_progress=False)
    end = first.sparse.explorer.progress[0].settings.end
    assert f"as in that run, until step {end}" in caplog.text
