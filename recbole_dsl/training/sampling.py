"""RecBole's samplers with vectorised loops: equal samples from equal draws of numpy's global generator.

RecBole tests every drawn value in Python, set by set. Here a batch is tested at once. Which numbers are
drawn, and in which order, is RecBole's: a first draw for all, then one for those that were refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from recbole.sampler import KGSampler, RepeatableSampler, Sampler

Array = Any  # numpy's own types are written for newer Pythons than ours

_MIXER: Final = np.uint64(0x9E3779B97F4A7C15)


class Pairs:
    """A set of (key, value) pairs, of which many can be looked up at once.

    Args:
        values_of: the values of every key, at ``values_of[key]``; whole numbers in [0, span).
        span: upper bound of values.
    """

    def __init__(self, values_of: Sequence[set[int]], span: int) -> None:
        counts = np.fromiter(map(len, values_of), np.int64, len(values_of))
        values = np.fromiter(itertools.chain.from_iterable(values_of), np.int64, int(counts.sum()))
        self.span = span
        self.codes = np.sort(np.repeat(np.arange(len(counts)), counts) * span + values)
        # A bit for each of 8 to 16 times as many codes, by which at least seven in eight absent pairs are
        # known to be absent: one look into memory instead of the twenty of a search through a million.
        self._shift = np.uint64(64 - max(3, (8 * len(self.codes)).bit_length()))
        self._filter: Array = np.zeros(1 << (61 - int(self._shift)), np.uint8)
        spots, bits = self._spots(self.codes)
        np.bitwise_or.at(self._filter, spots, bits)

    def _spots(self, codes: Array) -> tuple[Array, Array]:
        """Byte and bit of every code in the filter."""
        mixed = (codes.astype(np.uint64) * _MIXER) >> self._shift
        return mixed >> np.uint64(3), np.uint8(1) << (mixed & np.uint64(7)).astype(np.uint8)

    def contain(self, keys: Array, values: Array) -> Array:
        """Which of the pairs are in the set.

        Args:
            keys: (n,) whole numbers that are keys.
            values: (n,) whole numbers below ``span``; negative ones are in no pair.

        Returns:
            (n,) bool.
        """
        codes = keys * self.span + values
        spots, bits = self._spots(codes)
        found = ((self._filter[spots] & bits) != 0) & (values >= 0)
        doubtful = np.flatnonzero(found)
        if len(doubtful) > 0:
            asked = codes[doubtful]
            places = np.minimum(np.searchsorted(self.codes, asked), len(self.codes) - 1)
            found[doubtful] = self.codes[places] == asked
        return found


class VectorisedSampling:
    """Comes before one of RecBole's samplers in a class; :func:`vectorise` turns a sampler into one."""

    # What RecBole's sampler, the next class in line, sets.
    used_ids: Any
    prob: dict[int, float]
    alias: dict[int, int]
    sampling: Callable[[int], Array]

    span_name = "item_num"
    """The attribute that bounds the sampler's values."""

    _pairs: tuple[Any, Pairs] | None = None
    _table: tuple[Any, tuple[Array, ...]] | None = None

    def prepare(self) -> None:
        """Make what sampling needs now: worker processes then share it."""
        self._used_pairs()

    def _used_pairs(self) -> Pairs:
        # Kept beside the sets it was made of, which RecBole replaces when a phase is set.
        if self._pairs is None or self._pairs[0] is not self.used_ids:
            self._pairs = (self.used_ids, Pairs(self.used_ids, getattr(self, self.span_name)))
        return self._pairs[1]

    def sample_by_key_ids(self, key_ids: Any, num: int) -> torch.Tensor:
        """RecBole's method; what it would refuse goes to it."""
        keys = np.array(key_ids)
        usual = _whole_numbers(keys) and num >= 1 and isinstance(self.used_ids, np.ndarray)
        if not usual or keys.min() < 0 or keys.max() >= len(self.used_ids):
            return super().sample_by_key_ids(key_ids, num)  # type: ignore[misc]
        return self._sample(np.tile(keys.astype(np.int64), num), self._used_pairs().contain)

    def _sample(self, keys: Array, refused: Callable[[Array, Array], Array]) -> torch.Tensor:
        """A value for every key, drawn again until it is not ``refused(keys, values)``."""
        values = self.sampling(len(keys))
        left = np.flatnonzero(refused(keys, values))
        while len(left) > 0:
            values[left] = drawn = self.sampling(len(left))
            left = left[refused(keys[left], drawn)]
        return torch.tensor(values, dtype=torch.long)

    def _pop_sampling(self, sample_num: int) -> Array:
        """Draws by the alias method, as RecBole's: a position, then whether it is taken or its alias."""
        if self._table is None or self._table[0] is not self.prob:
            keys = list(self.prob)
            columns = (keys, [self.prob[k] for k in keys], [self.alias[k] for k in keys])
            self._table = (self.prob, tuple(np.array(c) for c in columns))
        ids, probabilities, aliases = self._table[1]
        spots = np.random.randint(0, len(ids), sample_num)
        draws = np.random.random(sample_num)
        return np.where(probabilities[spots] > draws, ids[spots], aliases[spots])


class FastSampler(VectorisedSampling, Sampler):
    """``Sampler``: a user's items are not drawn."""


class FastKGSampler(VectorisedSampling, KGSampler):
    """``KGSampler``: the tails of a head are not drawn."""

    span_name = "entity_num"


class FastRepeatableSampler(VectorisedSampling, RepeatableSampler):
    """``RepeatableSampler``: the item of a row itself is not drawn."""

    def prepare(self) -> None:
        """Nothing: what is refused changes with every batch."""

    def sample_by_user_ids(self, user_ids: Any, item_ids: Any, num: int) -> torch.Tensor:
        """RecBole's method, without a set for every row."""
        items = np.array(item_ids)
        if not _whole_numbers(items) or num < 1 or len(items) != len(user_ids):
            return super().sample_by_user_ids(user_ids, item_ids, num)
        return self._sample(np.tile(items, num), np.equal)


_VECTORISED: Final[dict[type, type[VectorisedSampling]]] = {
    Sampler: FastSampler,
    KGSampler: FastKGSampler,
    RepeatableSampler: FastRepeatableSampler,
}


def vectorise(sampler: Any) -> None:
    """Turn a sampler of RecBole's into its fast twin, in place; any other stays as it is."""
    twin = _VECTORISED.get(type(sampler))
    if twin is not None and isinstance(sampler.used_ids, np.ndarray):  # a dict of them has no phase yet
        sampler.__class__ = twin
        sampler.prepare()


def _whole_numbers(array: Array) -> bool:
    """Whether it is a list of at least one whole number."""
    return array.ndim == 1 and array.dtype.kind in "iu" and len(array) > 0
