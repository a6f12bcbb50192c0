"""Loops of retrieval that numba compiles, where it is installed. Their twins in numpy are in ``search.py``.

A heap of the best is kept in two arrays: the worst of them, by score and then by higher number, is first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import compiling

_CHUNK = 64


def _worse(score: Any, number: Any, other_score: Any, other: Any) -> Any:
    return score < other_score or (score == other_score and number > other)


def _put(scores: Any, numbers: Any, filled: Any, score: Any, number: Any) -> Any:
    """Put a candidate into the heap, in place of the worst if it is full; returns how many it holds."""
    size = len(scores)
    if filled < size:
        place = filled
        while place > 0:  # up, while the parent is better
            parent = (place - 1) // 2
            if not worse(score, number, scores[parent], numbers[parent]):
                break
            scores[place], numbers[place] = scores[parent], numbers[parent]
            place = parent
        scores[place], numbers[place] = score, number
        return filled + 1
    place = 0
    while True:  # down, while a child is worse
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and worse(scores[child + 1], numbers[child + 1], scores[child], numbers[child]):
            child += 1
        if not worse(scores[child], numbers[child], score, number):
            break
        scores[place], numbers[place] = scores[child], numbers[child]
        place = child
    scores[place], numbers[place] = score, number
    return filled


def _take(buffer: Any, first: Any, scores: Any, numbers: Any, filled: Any) -> Any:
    """Put the scores of numbers ``first``, … into the heap; returns how many it holds."""
    whole = len(buffer) // _CHUNK * _CHUNK
    for start in range(0, whole, _CHUNK):
        worst = scores[0] if filled == len(scores) else np.float32(-np.inf)
        chunk = buffer[start : start + _CHUNK]
        better = 0
        for i in range(_CHUNK):  # no branch and a fixed length: vector instructions
            better |= chunk[i] > worst
        if better:
            filled = take_each(chunk, first + start, scores, numbers, filled)
    return take_each(buffer[whole:], first + whole, scores, numbers, filled)


def _take_each(buffer: Any, first: Any, scores: Any, numbers: Any, filled: Any) -> Any:
    """The same, one score after the other."""
    for i in range(len(buffer)):
        # Numbers ascend, so one that only equals the worst loses the tie.
        if buffer[i] > (scores[0] if filled == len(scores) else -np.inf):
            filled = put(scores, numbers, filled, buffer[i], first + i)
    return filled


def _search_columns(
    pointers: Any, columns: Any, weights: Any, starts: Any, ids: Any, values: Any, items: Any, block: Any,
    width: Any, excluded: Any, places: Any, buffer: Any, scores: Any, numbers: Any, filled: Any,
) -> None:  # fmt: skip
    """The best items of queries over an inverted index, into the queries' heaps.

    Query ``q`` has ``columns[pointers[q]:pointers[q + 1]]``; ``places[q]`` … ``places[count + q]`` are its
    excluded numbers, ascending. Blocks are the outer loop, so that a block is in the cache for all queries but
    the first.
    """
    count = len(filled)
    for b in range((items + block - 1) // block):
        first = b * block
        length = min(block, items - first)
        for q in range(count):
            buffer[:length] = 0
            for c in range(pointers[q], pointers[q + 1]):
                weight = weights[c]
                slot = b * width + columns[c]
                near, by = ids[starts[slot] : starts[slot + 1]], values[starts[slot] : starts[slot + 1]]
                for i in range(len(near)):
                    buffer[np.uint64(near[i])] += weight * by[i]  # unsigned: no check for a negative one
            while places[q] < places[count + q] and excluded[places[q]] < first + length:
                buffer[excluded[places[q]] - first] = -np.inf
                places[q] += 1
            filled[q] = take(buffer[:length], first, scores[q], numbers[q], filled[q])


def _search_dense(
    matrix: Any, query: Any, excluded: Any, places: Any, buffer: Any, scores: Any, numbers: Any, filled: Any
) -> None:
    """The best rows of a dense matrix for one dense query, into its heap; exclusion as above."""
    for first in range(0, len(matrix), len(buffer)):
        length = min(len(buffer), len(matrix) - first)
        for i in range(length):
            row = matrix[first + i]
            total = np.float32(0)
            for j in range(len(query)):
                total += row[j] * query[j]
            buffer[i] = total
        while places[0] < places[1] and excluded[places[0]] < first + length:
            buffer[excluded[places[0]] - first] = -np.inf
            places[0] += 1
        filled[0] = take(buffer[:length], first, scores[0], numbers[0], filled[0])


def _take_block(
    block: Any, first: Any, excluded: Any, places: Any, scores: Any, numbers: Any, filled: Any
) -> None:
    """Put a block of scores, a row for each query, into the queries' heaps; exclusion as above."""
    count = block.shape[0]
    for q in range(count):
        while places[q] < places[count + q] and excluded[places[q]] < first + block.shape[1]:
            block[q, excluded[places[q]] - first] = -np.inf
            places[q] += 1
        filled[q] = take(block[q], first, scores[q], numbers[q], filled[q])


worse: Any = _worse
put: Any = _put
take: Any = _take
take_each: Any = _take_each
search_columns: Any = None
search_dense: Any = None
take_block: Any = None


def available() -> bool:
    """Whether numba is there; the loops are compiled at their first use."""
    global worse, put, take, take_each, search_columns, search_dense, take_block
    if not compiling.numba_installed():
        return False
    if search_columns is None:
        # Each finds those before it by the names of this module.
        worse = compiling.machine_code(_worse)()
        put = compiling.machine_code(_put)()
        take_each = compiling.machine_code(_take_each)()
        take = compiling.machine_code(_take)()
        search_dense = compiling.machine_code(_search_dense, reorder=True)()
        take_block = compiling.machine_code(_take_block)()
        search_columns = compiling.machine_code(_search_columns)()
    return True
