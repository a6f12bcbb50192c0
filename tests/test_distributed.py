"""Several processes train one model: by RecBole's flags, by torchrun, on "machines" of one host."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from recbole_dsl import launching
from recbole_dsl.config import RecBoleDSLConfig, no_flags
from recbole_dsl.errors import ConfigError, DSLError, NumberError, RanksError
from recbole_dsl.launching import Processes
from recbole_dsl.training.checkpoint import read_checkpoint
from recbole_dsl.training.loading import Share
from recbole_dsl.training.ranks import Ranks
from recbole_dsl.training.signals import Interrupted
from recbole_dsl.training.trainer import SparseTrainerMixin
from tests.model_runs import settings_of, sparse_trainer_of

ROOT = Path(__file__).resolve().parents[1]
ENTRY = [sys.executable, "-W", "ignore", str(ROOT / "run_recbole_dsl.py")]
RUN = [
    "--dataset=ml-100k", "--embedding_size=16", "--show_progress=False", "--gpu_id=", "--learning_rate=0.01",
    "--dsl_method=dsl", "--dsl_density=0.2", "--dsl_update_interval=20",
]  # fmt: skip

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")


def free_port() -> str:
    """A port that nobody uses now."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


def environment() -> dict[str, str]:
    """One thread for each process."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def start(folder: Path, *flags: str, command: list[str] = ENTRY) -> subprocess.Popen[str]:
    """A command in a folder of its own."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [*command, *RUN, *flags], cwd=folder, env=environment(), text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def done(process: subprocess.Popen[str]) -> str:
    """Wait for a command that has to end well; what it said."""
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def run(folder: Path, *flags: str, command: list[str] = ENTRY) -> dict[str, Any]:
    """A command's result."""
    done(start(folder, *flags, "--dsl_result=result.json", command=command))
    return json.loads((folder / "result.json").read_text())


def two(folder: Path, *flags: str) -> dict[str, Any]:
    """The result of two processes."""
    return run(folder, "--nproc=2", f"--port={free_port()}", *flags)


@pytest.mark.slow
def test_the_index_of_a_copied_encoder_does_not_travel(tmp_path: Path) -> None:
    """RecVAE keeps its encoder of the epoch before; types of an index are none that gloo sends."""
    assert two(tmp_path, "--model=RecVAE", "--epochs=1")["sparsity"]["live"] > 0


@pytest.mark.parametrize("model", ["BPR", pytest.param("LightGCN", marks=pytest.mark.slow)])
def test_two_processes_train_what_one_does(model: str, tmp_path: Path) -> None:
    """Half a batch each, gradients averaged: other negative samples, so metrics agree as those of two seeds do.

    That both have one topology is checked at every update, in the run itself. The seed is numpy's
    largest, beyond which there is none for the second process.
    """
    flags = (f"--model={model}", "--epochs=6", "--valid_metric=NDCG@10", f"--seed={2**32 - 1}")
    one, both = run(tmp_path / "one", *flags), two(tmp_path / "two", *flags)
    assert both["sparsity"]["updates"] == one["sparsity"]["updates"] > 5
    assert both["sparsity"]["live"] == one["sparsity"]["live"] == one["sparsity"]["budget"]
    for metric in ("recall@10", "ndcg@10"):
        assert both["test_result"][metric] == pytest.approx(one["test_result"][metric], rel=0.15)
    assert len(list((tmp_path / "two" / "saved").glob("*.dsl"))) == 2  # the first process's only


def stopped_in_epoch_two(folder: Path, *flags: str) -> Path:
    """Run two processes, and stop them by a signal; the checkpoint to go on from."""
    stopped = start(folder, "--nproc=2", f"--port={free_port()}", *flags)
    assert stopped.stderr is not None
    for line in stopped.stderr:
        if "epoch 2 training" in line:
            break
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 143 and "--resume=" in said.strip().splitlines()[-1]
    (last,) = (folder / "saved").glob("*-last.dsl")
    return last


@pytest.mark.slow
def test_a_run_of_two_goes_on_bit_for_bit_and_as_one(tmp_path: Path) -> None:
    """With last_gradient no sum is open between steps."""
    flags = ("--model=BPR", "--epochs=8", "--dsl_grow=last_gradient")
    whole = two(tmp_path / "whole", *flags)
    last = stopped_in_epoch_two(tmp_path / "part", *flags)
    assert len(read_checkpoint(last)["run"]["ranks"]) == 2
    copy = tmp_path / "alone" / "saved"
    copy.mkdir(parents=True)
    for file in last.parent.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    again = two(tmp_path / "part", *flags, "--resume")
    for key in ("train_loss", "best_valid_result", "test_result"):
        assert again[key] == whole[key]
    alone = run(tmp_path / "alone", *flags, "--resume")
    assert alone["epochs_run"] == 8 and alone["sparsity"]["live"] == alone["sparsity"]["budget"]


@pytest.mark.slow
def test_sums_of_an_open_growth_window_are_those_of_both_processes(tmp_path: Path) -> None:
    """They are stored as one sum, so only last bits differ; lost ones would change what grows, and the loss."""
    flags = ("--model=BPR", "--epochs=5", "--dsl_grow=accumulated_gradient", "--train_batch_size=1000")
    whole = two(tmp_path / "whole", *flags)
    last = stopped_in_epoch_two(tmp_path / "part", *flags)
    assert any(group["scores"] is not None for group in read_checkpoint(last)["run"]["explorer"].values())
    again = two(tmp_path / "part", *flags, "--resume")
    assert again["sparsity"]["updates"] == whole["sparsity"]["updates"] > 0
    assert again["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-6)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(tmp_path: Path) -> None:
    """Within a bounded time, with a message and a file to go on from."""
    flags = ("--model=BPR", "--epochs=300", "--dsl_save_every=1 epochs")
    process = start(tmp_path, "--nproc=2", f"--port={free_port()}", *flags)
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 2 training" in line:
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("this system does not tell which processes belong to one")
    workers = [
        int(child) for child in children.read_text().split()
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
    ]  # fmt: skip
    started = time.monotonic()
    os.kill(workers[-1], signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert time.monotonic() - started < 60
    assert process.returncode == 2
    assert "was ended by SIGKILL, and the others were stopped" in said.strip().splitlines()[-1]
    (last,) = (tmp_path / "saved").glob("*-last.dsl")
    assert read_checkpoint(last)["run"]["position"]["epoch"] >= 2


@pytest.mark.slow
def test_two_machines_of_one_process_each(tmp_path: Path) -> None:
    """RecBole's --world_size, --ip, --port and --group_offset; only the first has what to go on from."""
    for more in ("--epochs=2", "--epochs=3 --resume"):
        flags = ("--model=BPR", *more.split(), "--world_size=2", "--ip=127.0.0.1", f"--port={free_port()}")
        for machine in [start(tmp_path / name, *flags, f"--group_offset={name}") for name in ("0", "1")]:
            done(machine)
    assert [len(list((tmp_path / name).glob("saved/*.dsl"))) for name in ("0", "1")] == [2, 0]


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    """Found by its environment."""
    torchrun = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node=2",
        f"--master_port={free_port()}", str(ROOT / "run_recbole_dsl.py"),
    ]  # fmt: skip
    result = run(tmp_path, "--model=BPR", "--epochs=2", command=torchrun)
    assert result["epochs_run"] == 2 and result["sparsity"]["updates"] > 1


# --- parts ----------------------------------------------------------------------------------------


def flags(**given: str) -> argparse.Namespace:
    """Parsed flags."""
    usual = {"nproc": "1", "world_size": "-1", "ip": "localhost", "port": "5678", "group_offset": "0"}
    return argparse.Namespace(**(usual | given))


def test_flags_mean_what_they_do_in_recbole() -> None:
    """And torchrun's environment counts where there is one."""
    assert Processes.of(flags(), {}) == Processes()
    assert Processes.of(flags(nproc="4"), {}).world_size == 4
    machine = Processes.of(flags(nproc="2", world_size="6", group_offset="4"), {})
    assert machine.settings(1) == {
        "nproc": 2, "world_size": 6, "ip": "localhost", "port": "5678", "offset": 4, "local_rank": 1,
    }  # fmt: skip
    torchrun = {
        "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "6", "MASTER_ADDR": "here", "MASTER_PORT": "9",
        "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    assert Processes.of(flags(), torchrun) == Processes(2, 6, "here", 9, 4, 1)
    with pytest.raises(ConfigError, match="refused under torchrun"):
        Processes.of(flags(nproc="2"), torchrun)


@pytest.mark.parametrize(
    "given",
    [
        {"nproc": "0"}, {"nproc": "two"}, {"port": "0"}, {"port": "99999"}, {"group_offset": "-1"},
        {"nproc": "2", "world_size": "1"}, {"world_size": "2", "group_offset": "2"},
    ],
)  # fmt: skip
def test_flags_that_do_not_fit_are_refused(given: dict[str, str]) -> None:
    """Before anything is started."""
    with pytest.raises(ConfigError, match=f"--{next(iter(given))}"):
        Processes.of(flags(**given), {})


def test_a_port_in_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence: two runs on a machine have the same one unless told otherwise."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    given = {"gpu_id": "", "local_rank": 0, "nproc": 2, "world_size": 2, "offset": 0, "ip": "localhost"}
    with socket.socket() as taken, no_flags():
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RanksError, match=rf"cannot meet at localhost:{port} \(.*--port that is free there"):
            RecBoleDSLConfig("BPR", "ml-100k", config_dict={**given, "port": str(port)})
    assert not dist.is_initialized()


def test_a_process_leaves_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of one that is there to the end abort processes now and then."""
    there = []

    def experiment(model: str, dataset: str, files: list[str], given: dict[str, Any]) -> None:
        dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"tcp://localhost:{given['port']}")
        there.append((model, dataset, files, dist.is_initialized()))

    monkeypatch.setattr("recbole_dsl.experiment.run_recbole_dsl", experiment)
    of_torchrun = Processes(1, 2, "localhost", int(free_port()), 0, local_rank=0)
    launching.run_all(of_torchrun, "BPR", "ml-100k", ["a.yaml"])
    assert there == [("BPR", "ml-100k", ["a.yaml"], True)] and not dist.is_initialized()


def in_two(work: Any, *arguments: Any) -> None:
    """Run a function of a rank in two processes that know each other."""
    multiprocessing.spawn(_with_group, (free_port(), work, arguments), nprocs=2)


def _with_group(number: int, port: str, work: Any, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=number, world_size=2, init_method=f"tcp://localhost:{port}")
    work(number, *arguments)
    dist.destroy_process_group()


def _operations(number: int) -> None:
    ranks = Ranks({"single_spec": False, "device": torch.device("cpu")})
    assert (ranks.number, ranks.count, ranks.is_first) == (number, 2, number == 0)
    assert ranks.highest([number, 5 - number]) == [1, 5]
    assert ranks.told_by_first({"a": torch.ones(2) * number})["a"].tolist() == [0, 0]
    assert ranks.of_all(number) == [0, 1]
    numbers = torch.arange(10.0) * (number + 1)
    ranks.add_up(numbers)
    assert numbers.tolist() == [3.0 * n for n in range(10)]
    ranks.require_equal([torch.ones(3)], "All")
    with pytest.raises(RanksError, match=r"^The topology of rank 1 is not that of rank 0"):
        ranks.require_equal([torch.ones(3), torch.tensor([number])], "The topology")


def test_operations_of_ranks() -> None:
    """Each by hand; an unequal topology is found on both."""
    in_two(_operations)


def _one_of_two(
    number: int, port: str, folder: str, data: str, given: dict[str, Any], **sparsity: Any
) -> tuple[Any, Any]:
    """Trainer and loaders of a process of two; ``given`` and ``sparsity`` are settings besides the usual."""
    place = {"nproc": 2, "world_size": 2, "ip": "localhost", "port": port, "offset": 0, "local_rank": number}
    given = {**settings_of("BPR", Path(data)), **place, "gpu_id": "", "checkpoint_dir": folder, **given}
    return sparse_trainer_of("BPR", given, method="dsl", density=0.1, update_interval=3, **sparsity)


def _trainer_in_two(work: Any, data: Path, folder: Path) -> None:
    """Run a function that makes a trainer with :func:`_one_of_two` in two processes."""
    multiprocessing.spawn(_and_leave, (work, free_port(), str(folder / "saved"), str(data)), nprocs=2)


def _and_leave(number: int, work: Any, *arguments: str) -> None:
    work(number, *arguments)
    dist.destroy_process_group()


def _traffic(number: int, port: str, folder: str, data: str) -> None:
    sparsity = {"grow": "accumulated_gradient", "grow_window": 1}
    trainer, loaders = _one_of_two(number, port, folder, data, {"embedding_size": 64}, **sparsity)
    sent: dict[str, list[int]] = {"gradient": [], "scores": []}

    def count(_, bucket):  # torch checks the types that a hook declares
        sent["gradient"].append(bucket.buffer().numel())
        return dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future().then(lambda f: f.value()[0])

    trainer.distributed_model.register_comm_hook(None, count)
    plain = trainer.sparse.explorer.add_up

    def add_up(tensor: Any) -> None:
        sent["scores"].append(tensor.numel())
        plain(tensor)

    trainer.sparse.explorer.add_up = add_up
    trainer.fit(*loaders[:2], saved=False, show_progress=False)
    budget, weights = trainer.sparse.budget, trainer.sparse.dense_weights
    assert set(sent["gradient"]) == {budget} and budget == round(0.1 * weights)
    assert sent["scores"] == [weights] * trainer.sparse.explorer.updates and sent["scores"]
    positions = torch.cat([group.live_positions() for group in trainer.sparse.groups])
    both = [torch.empty_like(positions) for _ in range(2)]
    dist.all_gather(both, positions)
    assert torch.equal(*both)


def test_gradients_on_the_wire_are_those_of_live_weights(data: Path, tmp_path: Path) -> None:
    """A tenth of the dense model's; growth scores, a sum for every scored position, once per update."""
    _trainer_in_two(_traffic, data, tmp_path)


def _order(number: int, port: str, folder: str, data: str) -> None:
    trainer, loaders = _one_of_two(number, port, folder, data, {"epochs": 2})
    plain, seen = trainer._step, []

    def step(batch: Any, loss: Any, scaler: Any) -> Any:
        seen.append(torch.stack([batch["user_id"], batch["item_id"]], dim=1))
        return plain(batch, loss, scaler)

    trainer._step = step
    trainer.fit(*loaders[:2], saved=False, show_progress=False)
    half = len(seen) // 2
    first, second = torch.cat(seen[:half]), torch.cat(seen[half:])
    assert first.shape == second.shape and len(first) > 100 and not torch.equal(first, second)


@pytest.mark.slow
def test_epochs_of_two_processes_have_orders_of_their_own(data: Path, tmp_path: Path) -> None:
    """As those of one have."""
    _trainer_in_two(_order, data, tmp_path)


def _spoilt(number: int, port: str, folder: str, data: str) -> None:
    trainer, loaders = _one_of_two(number, port, folder, data, {"epochs": 2})
    plain, calls = trainer._step, []

    def step(batch: Any, loss: Any, scaler: Any) -> Any:
        calls.append(1)
        factor = float("nan") if number == 1 and len(calls) == 3 else 1.0
        return plain(batch, lambda given: loss(given) * factor, scaler)

    trainer._step = step
    with pytest.raises(NumberError):
        trainer.fit(*loaders[:2], saved=False, show_progress=False)
    assert len(calls) == 3


def test_a_loss_that_is_nan_in_one_process_ends_both(data: Path, tmp_path: Path) -> None:
    """Neither waits for the other."""
    _trainer_in_two(_spoilt, data, tmp_path)


@pytest.mark.parametrize(
    "status, told, asked, number",
    [
        (-signal.SIGTERM, [], [signal.SIGTERM], signal.SIGTERM),
        (1, [], [signal.SIGINT], signal.SIGINT),
        (130, [("signal", 2, "interrupted")], [signal.SIGINT], signal.SIGINT),
        (143, [("signal", 15, "stopped at step 3")], [signal.SIGTERM], signal.SIGTERM),
    ],
    ids=["before training", "while it starts", "as Ctrl-C", "in training"],
)
def test_processes_that_were_asked_to_end_have_not_failed(
    status: int, told: list[tuple[str, int, str]], asked: list[int], number: int
) -> None:
    """Wherever the signal has met them; what one of them says is passed on."""
    with pytest.raises(Interrupted) as stop:
        launching._raise(0, status, told, asked)
    assert stop.value.number == number and (not told or told[0][2] in str(stop.value))
    with pytest.raises(DSLError, match="no room"):
        launching._raise(0, 2, [("error", 2, "no room")], asked)
    if not told:
        with pytest.raises(DSLError, match="rank 0 has failed; its messages are above"):
            launching._raise(0, status, told, [])


@pytest.mark.slow
def test_a_signal_before_training_is_told_in_one_sentence(tmp_path: Path) -> None:
    """And no process leaves a trace of its calls."""
    process = start(tmp_path, "--nproc=2", f"--port={free_port()}", "--model=BPR", "--epochs=300")
    assert process.stderr is not None
    process.stderr.readline()  # the first thing that is logged, before data are read
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143 and "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("error: SIGTERM: ")


def test_metrics_are_weighed_by_users() -> None:
    """The mean over all users, not that of the processes' means."""
    trainer = SparseTrainerMixin.__new__(SparseTrainerMixin)
    trainer.ranks = SimpleNamespace(of_all=lambda _: [(3, {"ndcg@10": 0.2}), (1, {"ndcg@10": 0.6})])
    trainer.config, trainer._evaluated = {"metric_decimal_place": 4}, 3
    assert trainer._map_reduce({"ndcg@10": 0.2}, 1) == {"ndcg@10": 0.3}


@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_shares_are_a_partition(count: int) -> None:
    """Every row is scored by one process."""
    shares = [Share(count, number, 3) for number in range(3)]
    assert sorted(row for share in shares for row in share) == list(range(count))
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """Nobody could stop it else, and it would hold the run's checkpoints."""
    script = tmp_path / "start.py"
    script.write_text(
        "import multiprocessing, threading, time\n"
        "from recbole_dsl.launching import _end_with_parent\n"
        "def work():\n"
        "    threading.Thread(target=_end_with_parent, daemon=True).start()\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=work)\n"
        "    process.start()\n"
        "    print(process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert starter.stdout is not None
    assert int(starter.stdout.readline()) > 0
    time.sleep(1)
    starter.kill()
    starter.communicate(timeout=30)  # it writes to the same pipe, which ends with it
