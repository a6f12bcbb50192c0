"""Start the processes of a run, of RecBole's flags or of torchrun, and end them all when one has gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Final

from .errors import INTERRUPTED, ConfigError, DSLError, RanksError

GRACE: Final = 20.0
"""Seconds that processes have to end, when another has gone or they are stopped, before they are killed."""


@dataclass(frozen=True)
class Processes:
    """``nproc`` processes of this machine, of ``world_size`` on all, the first of which has rank ``offset``.

    They meet at ``ip`` and ``port``. ``local_rank``: of this process, where torchrun has started it.
    """

    nproc: int = 1
    world_size: int = 1
    ip: str = "localhost"
    port: int = 5678
    offset: int = 0
    local_rank: int | None = None

    @classmethod
    def of(cls, options: Any, environment: Mapping[str, str] = os.environ) -> Processes:
        """What flags, or torchrun's environment, ask for.

        Raises:
            ConfigError: a flag is no number, or they contradict each other.
        """
        given = {name: _number(options, name) for name in ("nproc", "world_size", "port", "group_offset")}
        nproc, offset = given["nproc"], given["group_offset"]
        world_size = given["world_size"] if given["world_size"] > 0 else nproc
        if {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
            if nproc != 1 or given["world_size"] > 1 or offset:
                raise ConfigError(
                    "--nproc, --world_size and --group_offset are refused under torchrun: allowed are its own "
                    "--nproc_per_node, --nnodes and --node_rank."
                )
            rank, local = int(environment["RANK"]), int(environment["LOCAL_RANK"])
            here = int(environment.get("LOCAL_WORLD_SIZE", "1"))
            place = (environment["MASTER_ADDR"], int(environment["MASTER_PORT"]))
            return cls(here, int(environment["WORLD_SIZE"]), *place, rank - local, local)
        if nproc < 1 or offset < 0 or offset + nproc > world_size or not 0 < given["port"] < 65536:
            raise ConfigError(
                f"--nproc={nproc} --group_offset={offset} --world_size={world_size} --port={given['port']} do "
                "not fit: allowed are at least one process, ranks from --group_offset below --world_size, and "
                "a port from 1 to 65535."
            )
        return cls(nproc, world_size, options.ip, given["port"], offset)

    def settings(self, local_rank: int) -> dict[str, Any]:
        """RecBole's settings of one of them."""
        return {
            "nproc": self.nproc,
            "world_size": self.world_size,
            "ip": self.ip,
            "port": str(self.port),
            "offset": self.offset,
            "local_rank": local_rank,
        }


def _number(options: Any, name: str) -> int:
    try:
        return int(getattr(options, name))
    except ValueError:
        raise ConfigError(f"--{name}={getattr(options, name)} is refused: allowed is a whole number.") from None


def run_all(processes: Processes, model: str, dataset: str, files: Sequence[str]) -> None:
    """Run one experiment in as many processes as there are to be.

    Raises:
        DSLError: what one of them has said, or that one has gone.
        KeyboardInterrupt: a signal has stopped them.
    """
    if processes.world_size == 1:
        from .experiment import run_recbole_dsl

        run_recbole_dsl(model, dataset, files)
    elif processes.local_rank is not None:
        _run_one(processes.local_rank, processes, (model, dataset, list(files)))
    else:
        _run_here(processes, (model, dataset, list(files)))


def _run_one(local: int, processes: Processes, what: tuple[str, str, list[str]]) -> None:
    import torch.distributed as dist

    from .experiment import run_recbole_dsl

    run_recbole_dsl(*what, processes.settings(local))
    # Threads of a group that is still there may let go of tensors after the interpreter has gone, which aborts.
    if dist.is_initialized():
        dist.destroy_process_group()


def _run_here(processes: Processes, what: tuple[str, str, list[str]]) -> None:
    import torch.multiprocessing

    context = torch.multiprocessing.get_context("spawn")
    messages = context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(local, processes, what, sys.argv, messages), daemon=False)
        for local in range(processes.nproc)
    ]
    asked: list[int] = []

    def tell(number: int, _: object) -> None:
        asked.append(number)
        for worker in workers:
            if worker.is_alive() and worker.pid is not None:
                os.kill(worker.pid, number)

    before = signal.signal(signal.SIGTERM, tell)
    interrupts = signal.signal(signal.SIGINT, tell)
    try:
        for worker in workers:
            worker.start()
        first = _await(workers)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupts)
    told: list[tuple[str, int, str]] = []
    while not messages.empty():
        told.append(messages.get())
    if first is not None:
        _raise(processes.offset + first, workers[first].exitcode or 0, told, asked)


def _await(workers: Sequence[Any]) -> int | None:
    """Until all have ended; when one has failed the others are given some time, and killed then.

    Returns the number of the one that failed first, None if all have ended well.
    """
    first, failed_at = _failed(workers), time.monotonic()
    while running := [worker for worker in workers if worker.is_alive()]:
        wait([worker.sentinel for worker in running], timeout=0.5)
        if first is None:
            first, failed_at = _failed(workers), time.monotonic()
        elif time.monotonic() - failed_at > GRACE:
            for worker in running:
                worker.kill()
    for worker in workers:
        worker.join()
    return _failed(workers) if first is None else first


def _failed(workers: Sequence[Any]) -> int | None:
    return next((n for n, worker in enumerate(workers) if worker.exitcode not in (None, 0)), None)


def _raise(rank: int, status: int, told: Sequence[tuple[str, int, str]], asked: Sequence[int]) -> None:
    """Say what has ended the processes: the one of ``rank`` was the first, with exit ``status``.

    ``asked``: signals that were passed on to them, which they obey wherever they are.
    """
    from .training.signals import Interrupted

    if status < 0 and status != -signal.SIGTERM:
        raise RanksError(
            f"The process of rank {rank} was ended by {signal.Signals(-status).name}, and the others were "
            "stopped; allowed is to go on with --resume."
        )
    for kind, number, text in told:
        if kind == "signal":
            raise Interrupted(number, text)
    texts = [text for kind, _, text in told if kind == "error"]
    if asked and not texts:
        raise Interrupted(asked[0], INTERRUPTED)
    raise DSLError(texts[0] if texts else f"The process of rank {rank} has failed; its messages are above.")


def _end_with_parent() -> None:
    """The one that started this process may be killed, and nobody could stop this one then."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(
    local: int, processes: Processes, what: tuple[str, str, list[str]], argv: list[str], messages: Any
) -> None:
    """One process: what it has to say goes to the one that started it."""
    sys.argv = argv
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from .training.signals import Interrupted

    try:
        _run_one(local, processes, what)
    except DSLError as error:
        messages.put(("error", 2, str(error)))
        sys.exit(2)
    except Interrupted as stop:
        messages.put(("signal", stop.number, stop.args[0]))
        sys.exit(stop.exit_status)
    except KeyboardInterrupt:
        messages.put(("signal", int(signal.SIGINT), INTERRUPTED))
        sys.exit(128 + signal.SIGINT)
