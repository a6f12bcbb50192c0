"""Processes that train one model together: who is which, and what they tell each other.

Where there is only one, every operation gives back what it was given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from recbole.trainer.trainer import AbstractTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import DSLError, RanksError

PIECE: Final = 2**24
"""Elements of a tensor that are summed together, so that no second copy of it is needed."""


class Ranks:
    """The processes of a run; all of them have to call the same operations in the same order.

    Args:
        config: RecBole's settings; with several processes the process group is there.
    """

    def __init__(self, config: Any) -> None:
        alone = bool(config["single_spec"])
        self.count = 1 if alone else dist.get_world_size()
        self.number = 0 if alone else dist.get_rank()
        self.device: torch.device = config["device"]

    def seed(self, of_the_run: int) -> int:
        """One of this process's own, of the run's in the first; below 2^32, as numpy's are."""
        return (of_the_run + self.number) % 2**32

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.number == 0

    def highest(self, numbers: Sequence[int]) -> list[int]:
        """Of each number the highest over all processes."""
        if self.count == 1:
            return list(numbers)
        told = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return [int(number) for number in told.tolist()]

    def add_up(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by the sum over all processes."""
        if self.count > 1:
            for piece in tensor.view(-1).split(PIECE):
                dist.all_reduce(piece)

    def told_by_first(self, value: Any) -> Any:
        """What the first process has given, of plain values and tensors."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def done_by_first(self, do: Callable[[], Any]) -> Any:
        """What ``do`` returns in the first process, which alone calls it (plain values and tensors).

        Raises:
            DSLError: in all processes, if it does so in the first.
        """
        told: Any = None
        if self.is_first:
            try:
                told = do()
            except DSLError as error:
                told = error
        told = self.told_by_first(told)
        if isinstance(told, DSLError):
            raise told
        return told

    def of_all(self, value: Any) -> list[Any]:
        """What every process has given, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def require_equal(self, tensors: Iterable[Tensor], what: str) -> None:
        """Raise RanksError on all processes if tensors that have to be equal are not."""
        if self.count == 1:
            return
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()))
        digests = self.of_all(digest.hexdigest())
        if len(set(digests)) > 1:
            others = [number for number, found in enumerate(digests) if found != digests[0]]
            raise RanksError(
                f"{what} of rank {', '.join(map(str, others))} is not that of rank 0; allowed are equal "
                "weights on all ranks (have they the same versions, data and settings?)."
            )


class RankedTrainer(AbstractTrainer):
    """RecBole's ``AbstractTrainer``, with gradients that are averaged on any device.

    RecBole's own names a CUDA device for every process, and makes batch norms of a class that knows CUDA only.
    """

    def __init__(self, config: Any, model: nn.Module) -> None:
        self.config, self.model = config, model
        if config["single_spec"]:
            return
        if config["device"].type == "cuda":
            super().__init__(config, model)
        else:
            self.distributed_model = DistributedDataParallel(model)
