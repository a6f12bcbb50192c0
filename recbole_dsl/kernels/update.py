"""Loops of an update over live weights by rows (CSR: row pointers, column ids; all tensors of a group).

``first`` is where a tensor's rows start among those of its group; ``rows`` (int64, ascending) and the
places in the matrix of these rows, of ``width`` columns, count from there.
"""

from __future__ import annotations

from typing import Any

from . import loop


@loop
def copy_marks(marks: Any, pointers: Any, columns: Any, first: int, rows: Any, width: int, out: Any) -> None:
    """Write the ``marks`` (bool, per live weight) of some rows to their places in ``out`` (bool)."""
    for i in range(rows.size):
        row = first + rows[i]
        for k in range(pointers[row], pointers[row + 1]):
            out[i * width + columns[k]] = marks[k]


@loop
def separate(places: Any, marks: Any, pointers: Any, columns: Any, first: int, rows: Any, width: int) -> int:
    """Clear the ``marks`` of live weights among ``places`` (int64, ascending); move the others to the front.

    Returns how many others there are.
    """
    count = 0
    last, k = -1, 0
    for n in range(places.size):
        place = places[n]
        i = place // width
        row, column = first + rows[i], place - i * width
        if i != last:
            last, k = i, pointers[row]
        while k < pointers[row + 1] and columns[k] < column:
            k += 1
        if k < pointers[row + 1] and columns[k] == column:
            marks[k] = False
        else:
            places[count] = place
            count += 1
    return count


@loop
def close_gaps(leaving: Any, pointers: Any) -> None:
    """Row pointers (rows + 1,) without the ``leaving`` (bool) live weights."""
    k = written = 0
    for row in range(pointers.size - 1):
        end = pointers[row + 1]
        while k < end:
            written += not leaving[k]
            k += 1
        pointers[row + 1] = written


@loop
def pack_front(leaving: Any, moved: Any) -> None:
    """Move what stays of ``moved`` (an entry per live weight) to the front."""
    written = 0
    for k in range(leaving.size):  # without a branch, which a processor would often guess wrong
        moved[written] = moved[k]
        written += not leaving[k]


@loop
def find_room(
    places: Any, pointers: Any, columns: Any, first: int, width: int, targets: Any, new_columns: Any
) -> None:
    """Where ``places`` (int64, ascending, none live) will be among the live weights from ``first`` on.

    ``targets``: their numbers, counted from the first live weight of that row, each place counted in;
    ``new_columns``: their columns.
    """
    low, last, k = pointers[first], -1, 0
    for n in range(places.size):
        i = places[n] // width
        column = places[n] - i * width
        if i != last:
            last, k = i, pointers[first + i]
        while k < pointers[first + i + 1] and columns[k] < column:
            k += 1
        targets[n] = k - low + n
        new_columns[n] = column


@loop
def make_room(moved: Any, low: int, high: int, start: int, places: Any, birth: float) -> None:
    """Spread the entries ``low`` … ``high`` - 1 of ``moved`` over ``start`` and what follows, in place.

    ``places`` (int64, ascending; counted from ``start`` ≥ ``low``) are left free and get ``birth``.
    """
    source, n = high - 1, places.size - 1
    for target in range(start + high - low + n, start - 1, -1):
        if n >= 0 and target == start + places[n]:
            moved[target] = birth
            n -= 1
        else:
            moved[target] = moved[source]
            source -= 1


@loop
def set_bits(bits: Any, pointers: Any, columns: Any, first: int, rows: int, width: int, start: int) -> int:
    """Set the bits of the live weights of ``rows`` rows, whose positions begin at ``start``.

    ``bits``: uint8, eight positions each. Returns how many bits were not set before.
    """
    new = 0
    for i in range(rows):
        for k in range(pointers[first + i], pointers[first + i + 1]):
            position = start + i * width + columns[k]
            byte, bit = position >> 3, 1 << (position & 7)
            new += bits[byte] & bit == 0
            bits[byte] |= bit
    return new
