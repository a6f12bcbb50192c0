"""RecBole's loaders with less Python per row: equal batches, from equal draws of their generators.

Loaders keep their objects and become subclasses of their own classes, so that workers, pickling and
``isinstance`` go on as before. Classes of one's own stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from recbole.data.dataloader import (
    FullSortEvalDataLoader,
    KGDataLoader,
    KnowledgeBasedDataLoader,
    NegSampleDataLoader,
    NegSampleEvalDataLoader,
    TrainDataLoader,
    UserDataLoader,
)
from recbole.data.interaction import Interaction
from recbole.data.transform import Equal
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler, Sampler, SequentialSampler

from .sampling import vectorise

SCORES_AT_ONCE: Final = 1 << 20
"""Scores of a batch of users in full ranking, where ``eval_batch_size`` asks for fewer."""

USERS_AT_ONCE: Final = 64
"""Users of such a batch at most: beyond it a product with the item table gains nothing."""


def accelerate(loader: Any) -> None:
    """Make a loader of RecBole's fast, in place, with its sampler and the tables of its dataset."""
    if isinstance(loader, KnowledgeBasedDataLoader):
        accelerate(loader.general_dataloader)
        accelerate(loader.kg_dataloader)
        return
    if type(loader) not in _FAST:
        return
    if type(loader) is KGDataLoader or (isinstance(loader, NegSampleDataLoader) and _samples(loader)):
        vectorise(loader._sampler)  # those of other loaders only know what was used
    dataset = loader._dataset
    tables = [getattr(dataset, name, None) for name in ("inter_feat", "user_feat", "item_feat", "kg_feat")]
    for table in (*tables, getattr(loader, "user_df", None), getattr(loader, "user_list", None)):
        if type(table) is Interaction:
            table.__class__ = Table
    _batch_without_lists(loader)
    twin = _FAST[type(loader)]
    if twin is not None:
        loader.__class__ = twin
        del loader.__dict__["collate_fn"]  # bound to the method of the old class; the new one's takes over
        loader.prepare()


def share_out(loader: Any) -> None:
    """Give every process its share of the rows of an evaluation, each row to one.

    RecBole's sampler repeats rows until all have equally many, so some would count twice.
    """
    loader.__dict__["sampler"] = Share(loader.sample_size, dist.get_rank(), dist.get_world_size())
    _set_batch_size(loader, loader.batch_size)


class Share(Sampler[int]):
    """Rows ``number``, ``number`` + ``processes``, … below ``count``."""

    def __init__(self, count: int, number: int, processes: int) -> None:
        self.rows = range(number, count, processes)

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def _samples(loader: Any) -> bool:
    """Whether a loader draws negative samples."""
    args = loader.neg_sample_args
    return args["distribution"] != "none" and args["sample_num"] != "none"


class Table(Interaction):
    """An ``Interaction`` whose rows are taken by tensor, where RecBole makes a list for every column."""

    def __getitem__(self, index: Any) -> Any:
        rows = torch.from_numpy(index) if isinstance(index, np.ndarray) and index.dtype == np.int64 else index
        if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
            return super().__getitem__(index)
        rows = rows.cpu()
        columns = self.interaction.items()
        # A third of the time of indexing for sequences; but it knows no negative rows.
        if len(rows) > 0 and rows.min() >= 0:
            return Interaction({name: column.index_select(0, rows) for name, column in columns})
        return Interaction({name: column[rows] for name, column in columns})


class Positions:
    """The rows of an epoch, in place of RecBole's list of as many Python numbers (36 bytes each)."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> int:
        return position

    def __getitems__(self, positions: Any) -> Any:
        """What torch's loaders ask for a batch."""
        return positions


class Batches(BatchSampler):
    """Torch's ``BatchSampler`` over rows in order or shuffled, without a Python number for each.

    The generator is drawn from as torch's samplers do: an order at the start of an epoch and another,
    unused, once the first has run out.
    """

    def __iter__(self) -> Iterator[Any]:
        count = len(self.sampler)  # type: ignore[arg-type]
        order = self._order(count)
        for start in range(0, count, self.batch_size):
            batch = order[start : start + self.batch_size]
            if len(batch) < self.batch_size:
                self._order(count)
            yield batch
        if count % self.batch_size == 0:
            self._order(count)

    def _order(self, count: int) -> Any:
        if isinstance(self.sampler, RandomSampler):
            return torch.randperm(count, generator=self.sampler.generator).numpy()
        return np.arange(count)


def _batch_without_lists(loader: Any) -> None:
    """Replace the lists behind a loader; torch forbids to set them, since workers may have copies."""
    positions = Positions(loader.sample_size)
    loader.__dict__["dataset"] = positions
    for name in ("data_source", "dataset"):  # the latter of a DistributedSampler
        if name in vars(loader.sampler):
            setattr(loader.sampler, name, positions)
    _set_batch_size(loader, loader.batch_size)


def _set_batch_size(loader: Any, size: int) -> None:
    sampler = loader.sampler
    plain = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)
    batches = Batches if plain else BatchSampler
    loader.__dict__["batch_size"] = size
    loader.__dict__["batch_sampler"] = batches(sampler, size, False)


class Lists:
    """A list of numbers for every user of a loader, in one tensor.

    Args:
        lists: one tensor (any length,) int64 per user.
    """

    def __init__(self, lists: list[Tensor]) -> None:
        counts = torch.tensor([len(numbers) for numbers in lists])
        self.ends = counts.cumsum(0)
        self.counts = counts
        self.numbers = torch.cat(lists) if lists else torch.zeros(0, dtype=torch.int64)

    def of(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """(Row in ``users``, number) for every number of users (n,), row by row."""
        counts = self.counts[users]
        rows = torch.repeat_interleave(torch.arange(len(users)), counts)
        first = self.ends[users] - counts
        before = counts.cumsum(0) - counts
        spots = torch.arange(len(rows)) + (first - before)[rows]
        return rows, self.numbers[spots]

    def table(self, users: Tensor, size: int) -> Any:
        """Array (size,) of the users' tensors, None where there is none: RecBole's form."""
        lists = np.array([None] * size)
        for user, numbers in zip(users.tolist(), self.numbers.split(self.counts.tolist()), strict=True):
            lists[user] = numbers.clone()
        return lists


class FastFullSortEvalDataLoader(FullSortEvalDataLoader):
    """RecBole's loader of users with their positive and used items; several users in every batch."""

    def prepare(self) -> None:
        """Put users' items into one tensor; enlarge the batches."""
        if self.is_sequential:
            return
        self.step: int
        users = self.uid_list.tolist()
        self._history = Lists([self.__dict__["uid2history_item"][user] for user in users])
        self._positives = Lists([self.__dict__["uid2positive_item"][user] for user in users])
        del self.__dict__["uid2history_item"], self.__dict__["uid2positive_item"]
        users_at_once = min(USERS_AT_ONCE, SCORES_AT_ONCE // self._dataset.item_num)
        # In whole batches of RecBole's: a GPU draws other random numbers for a batch of another size.
        self.step *= max(1, users_at_once // self.step)
        _set_batch_size(self, self.step)

    @property
    def uid2history_item(self) -> Any:
        """RecBole's array: by user, the items used before this phase."""
        return self._history.table(self.uid_list, self._dataset.user_num)

    @property
    def uid2positive_item(self) -> Any:
        """RecBole's array: by user, the items of this phase."""
        return self._positives.table(self.uid_list, self._dataset.user_num)

    def collate_fn(self, index: Any) -> Any:
        """RecBole's batch of users at positions ``index`` (n,)."""
        if self.is_sequential:
            return super().collate_fn(index)
        rows = torch.from_numpy(np.array(index))
        return self.user_df[rows], self._history.of(rows), *self._positives.of(rows)


class FastNegSampleEvalDataLoader(NegSampleEvalDataLoader):
    """RecBole's loader of users with positive and drawn items, put together for all users at once."""

    def prepare(self) -> None:
        """Nothing."""

    def collate_fn(self, index: Any) -> Any:
        """RecBole's batch: of every user at ``index`` (n,) the positive rows, then the drawn ones."""
        if (
            not _samples(self)
            or self.neg_sample_args.get("dynamic", False)
            or type(self.transform) is not Equal
        ):
            return super().collate_fn(index)
        users = self.uid_list[np.array(index)]
        counts = self.uid2items_num[users]
        spans = [self.uid2index[user] for user in users]
        rows = np.concatenate([np.arange(s.start, s.stop) for s in spans])
        positives = self._dataset.inter_feat[rows]
        ids = positives[self.uid_field].numpy(), positives[self.iid_field].numpy()
        drawn, start = [], 0
        for count in counts.tolist():  # user by user, as the draws depend on those refused before
            own = slice(start, start + count)
            drawn.append(self._sampler.sample_by_user_ids(ids[0][own], ids[1][own], self.neg_sample_num))
            start += count
        return self._put_together(positives, drawn, counts)

    def _put_together(self, positives: Any, drawn: list[Tensor], counts: Any) -> Any:
        """The batch of rows ``positives``, of which user u has counts[u], and as many times drawn[u]."""
        numbers = torch.from_numpy(counts)
        owner = torch.repeat_interleave(torch.arange(len(counts)), numbers * self.times)
        first = (numbers.cumsum(0) - numbers)[owner]
        place = torch.arange(len(owner)) - first * self.times
        own = numbers[owner]
        batch = Table(positives.interaction)[first + place % own]
        positive = place < own
        batch[self.iid_field][~positive] = torch.cat(drawn)
        batch = self._dataset.join(batch)
        batch[self.label_field] = positive.float()
        positive_u = torch.repeat_interleave(torch.arange(len(counts)), numbers)
        return batch, owner, positive_u, positives[self.iid_field]


# Classes with nothing to gain beyond what is done for all have no twin.
_FAST: Final[dict[type, Any]] = {
    TrainDataLoader: None,
    KGDataLoader: None,
    UserDataLoader: None,
    FullSortEvalDataLoader: FastFullSortEvalDataLoader,
    NegSampleEvalDataLoader: FastNegSampleEvalDataLoader,
}
