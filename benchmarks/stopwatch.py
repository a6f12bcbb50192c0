"""Clocks of the benchmarks: steps of an epoch, updates of a topology, memory of the process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from recbole_dsl.costs import peak_memory_bytes
from recbole_dsl.sparsity.explorer import Explorer


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


class TimedLoader:
    """A training loader that notes what each step takes, to be given to a trainer in the loader's place.

    ``load``: seconds to get each batch from the loader and sampler; ``compute``: seconds of what the
    trainer does with it. It ends after ``steps`` batches, or ``seconds`` and at least ``least``
    batches; ``whole`` says whether the loader came to its own end.
    """

    def __init__(
        self,
        loader: Any,
        device: torch.device,
        steps: int | None = None,
        seconds: float | None = None,
        least: int = 1,
    ) -> None:
        self.loader, self.device = loader, device
        self.steps, self.seconds, self.least = steps, seconds, least
        self.load: list[float] = []
        self.compute: list[float] = []
        self.whole = False

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        started = now(self.device)
        batches = iter(self.loader)
        while not self._enough(started):
            asked = now(self.device)
            try:
                batch = next(batches)
            except StopIteration:
                self.whole = True
                return
            handed = now(self.device)
            yield batch
            self.compute.append(now(self.device) - handed)
            self.load.append(handed - asked)

    def _enough(self, started: float) -> bool:
        done = len(self.compute)
        if self.steps is not None and done >= self.steps:
            return True
        late = self.seconds is not None and perf_counter() - started > self.seconds
        return late and done >= self.least

    @property
    def each(self) -> list[float]:
        """Seconds of each step, loading included."""
        return [a + b for a, b in zip(self.load, self.compute, strict=True)]


def place(explorer: Explorer, before_update: int) -> bool:
    """Move all groups to ``before_update`` steps before the end of their first update interval.

    Only the count of steps is changed, so that a window or an update can be timed without the steps
    that lead there. False if there will be no update.
    """
    for progress in explorer.progress:
        progress.step = max(0, progress.settings.update_interval - before_update)
        explorer._prepare_next_step(progress)
    return any(explorer._next_update(progress) is not None for progress in explorer.progress)


@contextlib.contextmanager
def timed_hooks(explorer: Explorer, device: torch.device) -> Iterator[list[float]]:
    """Seconds that the explorer spends after each optimizer step, for each group: scores and updates."""
    times: list[float] = []
    plain = explorer._after_step

    def timed(*args: Any) -> None:
        started = now(device)
        plain(*args)
        times.append(now(device) - started)

    explorer._after_step = timed  # type: ignore[method-assign]
    try:
        yield times
    finally:
        del explorer._after_step  # the class's own again


def settle_memory() -> int | None:
    """Give freed memory back, start a new peak and return the resident bytes; None where that is unknown."""
    gc.collect()
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def peak_of_process() -> int:
    """Peak resident bytes since the start or, on Linux, the last :func:`settle_memory`."""
    return peak_memory_bytes(torch.device("cpu"))


def _status(field: str) -> int:
    """A field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
