"""RecBole's evaluation without a matrix of positives, and of several users at once; equal metrics."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from recbole import trainer as trainers
from recbole.evaluator import Evaluator
from recbole.evaluator.collector import Collector, DataStruct
from recbole.model.abstract_recommender import AbstractRecommender
from torch import Tensor

from ..neumf import ranking


class Rows(DataStruct):
    """RecBole's store of what was collected; batches go into tensors with room for more.

    RecBole copies all rows at each batch. A tensor for each batch would lie between the batches' large ones
    for as long as the evaluation takes, and the allocator's heap would grow around them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[str, tuple[Tensor, int]] = {}

    def update_tensor(self, name: str, value: Tensor) -> None:
        """Append the rows of ``value``."""
        earlier = self[name] if name in self else value[:0]
        room, filled = self._rows.get(name, (earlier, len(earlier)))
        end = filled + len(value)
        if end > len(room):
            grown = value.new_empty((max(2 * len(room), end), *value.shape[1:]))
            grown[:filled] = room[:filled]
            room = grown
        room[filled:end] = value.detach()
        self._rows[name] = room, end

    def finish(self) -> None:
        """Make a tensor of what was appended since the last call."""
        for name, (room, filled) in self._rows.items():
            self[name] = room[:filled]
        self._rows.clear()


class FastCollector(Collector):
    """RecBole's collector; ``rec.items`` and ``rec.topk`` come from one ranking and sorted positives."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.data_struct = Rows()
        self._other_needs = any(map(self.register.need, ("rec.meanrank", "rec.score", "data.label")))

    def eval_batch_collect(
        self, scores_tensor: Tensor, interaction: Any, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        """Collect what the metrics need of a batch; arguments as RecBole's.

        Args:
            scores_tensor: (users, items), or (rows,) where rows have labels.
            interaction: the batch.
            positive_u: (n,) the user, a row of scores, of every positive pair; None for labelled rows.
            positive_i: (n,) its item.
        """
        items, hits = self.register.need("rec.items"), self.register.need("rec.topk")
        if items or hits:
            _, ranked = torch.topk(scores_tensor, max(self.topk), dim=-1)
            if items:
                self.data_struct.update_tensor("rec.items", ranked)
            if hits:
                found = hits_of(ranked, scores_tensor.shape[1], positive_u, positive_i)
                self.data_struct.update_tensor("rec.topk", found)
        if self._other_needs:
            self._collect_others(scores_tensor, interaction, positive_u, positive_i)

    def _collect_others(self, *batch: Any) -> None:
        """RecBole's own method for what is left."""
        needs = self.register.__dict__
        done = {name: needs.pop(name) for name in ("rec.items", "rec.topk") if name in needs}
        try:
            super().eval_batch_collect(*batch)
        finally:
            needs.update(done)

    def get_data_struct(self) -> Any:
        """What was collected, as RecBole's; its tensors of batches are forgotten here."""
        self.data_struct.finish()
        return super().get_data_struct()


def hits_of(ranked: Tensor, items: int, positive_u: Tensor, positive_i: Tensor) -> Tensor:
    """Which ranked items are positive, and how many positive items every user has.

    Args:
        ranked: (users, k) item ids, best first.
        items: how many items there are.
        positive_u: (n,) the user of every positive pair, in any order, pairs may repeat.
        positive_i: (n,) its item.

    Returns:
        (users, k + 1) int64: 0 or 1 for every ranked item, then the number.
    """
    users = torch.arange(len(ranked), device=ranked.device).unsqueeze(1)
    codes = torch.unique(positive_u.to(ranked.device) * items + positive_i.to(ranked.device))
    counts = torch.bincount(torch.div(codes, items, rounding_mode="floor"), minlength=len(ranked))
    asked = users * items + ranked
    places = torch.searchsorted(codes, asked).clamp_max(max(len(codes) - 1, 0))
    found = codes[places] == asked if len(codes) > 0 else torch.zeros_like(asked)
    return torch.cat((found.to(torch.int64), counts.unsqueeze(1)), dim=1)


Score = Callable[[Any], tuple[Any, Tensor, Tensor, Tensor]]


class UserScores:
    """Scores batches of several users where RecBole's are smaller.

    Users do not depend on each other in most models. Two kinds get RecBole's batches: models that draw
    random numbers, which they would spend otherwise, and those that only predict pairs, where RecBole
    scores a batch in pieces anyway. NeuMF, which is of these, scores all items in its own way, if ``fast``.
    """

    def __init__(self, model: Any, fast: bool) -> None:
        self._ranking = functools.partial(ranking, model if fast else None)
        only_pairs = type(model).full_sort_predict is AbstractRecommender.full_sort_predict
        self._together: bool | None = False if only_pairs else None

    def __call__(self, score: Score, batch: Any, users: int) -> tuple[Any, Tensor, Tensor, Tensor]:
        """What ``score``, RecBole's ``_full_sort_batch_eval``, returns for a batch.

        Args:
            score: scores one batch.
            batch: (interaction, (rows, items) of the history or None, positive_u, positive_i).
            users: how many users RecBole scores at once.
        """
        with self._ranking() as ours:
            if ours or self._together or batch[1] is None or len(batch[0]) <= users:
                return score(batch)
        pieces = split(batch, users)
        before = generator_states() if self._together is None else None
        first = score(next(pieces))[1]
        if before is not None:
            self._together = same_states(before, generator_states())
            if self._together:
                return score(batch)
        scores = torch.cat([first, *(score(piece)[1] for piece in pieces)])
        return batch[0], scores, batch[2], batch[3]


def split(batch: Any, users: int) -> Iterator[Any]:
    """Batches of ``users`` users at most, in order."""
    interaction, (history_u, history_i), positive_u, positive_i = batch
    for start in range(0, len(interaction), users):
        own = (history_u >= start) & (history_u < start + users)
        mine = (positive_u >= start) & (positive_u < start + users)
        yield (
            interaction[slice(start, start + users)],
            (history_u[own] - start, history_i[own]),
            positive_u[mine] - start,
            positive_i[mine],
        )


def generator_states() -> tuple[Any, ...]:
    """The states of the global generators of torch, its devices, numpy and Python."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), devices, np.random.get_state(), random.getstate()


def same_states(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether no generator has been drawn from between the two."""
    tensors = zip([one[0], *one[1]], [other[0], *other[1]], strict=True)
    arrays = all(np.array_equal(a, b) for a, b in zip(one[2], other[2], strict=True))
    return all(torch.equal(a, b) for a, b in tensors) and arrays and one[3] == other[3]


class Evaluation(trainers.Trainer):
    """RecBole's evaluation alone: ``evaluate(data, load_best_model=False)``; no optimizer, files or logs.

    Args:
        model: has ``eval``, ``full_sort_predict`` and ``predict``; need not be trainable.
    """

    def __init__(self, config: Any, model: Any) -> None:
        self.config, self.model, self.device = config, model, config["device"]
        self.gpu_available = torch.cuda.is_available() and config["use_gpu"]
        self.test_batch_size = config["eval_batch_size"]
        self.item_tensor = self.tot_item_num = None
        fast = config.dsl.data_path == "fast"
        self.eval_collector = FastCollector(config) if fast else Collector(config)
        self.evaluator = Evaluator(config)
        self.wandblogger = _NoLog()
        self._user_scores = UserScores(model, fast)

    def _full_sort_batch_eval(self, batched_data: Any) -> Any:
        users = max(self.test_batch_size // self.tot_item_num, 1)
        return self._user_scores(super()._full_sort_batch_eval, batched_data, users)


class _NoLog:
    def log_eval_metrics(self, *_: Any, **__: Any) -> None:
        """Nothing is logged."""
