"""Loops of retrieval that numba compiles, where it is installed. Their twins in numpy are in ``search.py``.

A heap of the best is kept in two arrays: the worst of them, by score and then by higher number, is first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import compiling


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
    size = len(scores)
    for i in range(len(buffer)):
        score = buffer[i]
        # Numbers ascend, so one that only equals the worst loses the tie.
        if score > -np.inf and (filled < size or score > scores[0]):
            filled = put(scores, numbers, filled, score, first + i)
    return filled


def _search_columns(
    query_columns: Any, query_values: Any, starts: Any, ids: Any, values: Any, items: Any, block: Any,
    width: Any, excluded: Any, buffer: Any, scores: Any, numbers: Any,
) -> Any:  # fmt: skip
    """The best items of a query over an inverted index; returns how many were found, heap-ordered."""
    filled, e = 0, 0
    for b in range((items + block - 1) // block):
        first = b * block
        length = min(block, items - first)
        buffer[:length] = 0
        for q in range(len(query_columns)):
            weight = query_values[q]
            slot = b * width + query_columns[q]
            for p in range(starts[slot], starts[slot + 1]):
                buffer[ids[p]] += weight * values[p]
        while e < len(excluded) and excluded[e] < first + length:
            buffer[excluded[e] - first] = -np.inf
            e += 1
        filled = take(buffer[:length], first, scores, numbers, filled)
    return filled


def _search_rows(
    query: Any, pointers: Any, columns: Any, values: Any, excluded: Any, buffer: Any, scores: Any, numbers: Any
) -> Any:
    """The same over compressed rows, for a dense query."""
    items, block = len(pointers) - 1, len(buffer)
    filled, e = 0, 0
    for first in range(0, items, block):
        length = min(block, items - first)
        for i in range(length):
            total = np.float32(0)
            for p in range(pointers[first + i], pointers[first + i + 1]):
                total += query[columns[p]] * values[p]
            buffer[i] = total
        while e < len(excluded) and excluded[e] < first + length:
            buffer[excluded[e] - first] = -np.inf
            e += 1
        filled = take(buffer[:length], first, scores, numbers, filled)
    return filled


def _take_block(
    block: Any, first: Any, excluded: Any, starts: Any, scores: Any, numbers: Any, filled: Any
) -> None:
    """Put a block of scores, a row for each query, into the queries' heaps. Excluded numbers are sorted."""
    for q in range(block.shape[0]):
        while starts[q] < starts[q + block.shape[0]] and excluded[starts[q]] < first + block.shape[1]:
            block[q, excluded[starts[q]] - first] = -np.inf
            starts[q] += 1
        filled[q] = take(block[q], first, scores[q], numbers[q], filled[q])


worse: Any = _worse
put: Any = _put
take: Any = _take
search_columns: Any = None
search_rows: Any = None
take_block: Any = None


def available() -> bool:
    """Whether numba is there; the loops are compiled at their first use."""
    global worse, put, take, search_columns, search_rows, take_block
    if not compiling.numba_installed():
        return False
    if search_columns is None:
        worse = compiling.machine_code(_worse)()
        put = compiling.machine_code(_put)()
        take = compiling.machine_code(_take)()
        search_rows = compiling.machine_code(_search_rows)()
        take_block = compiling.machine_code(_take_block)()
        search_columns = compiling.machine_code(_search_columns)()
    return True
