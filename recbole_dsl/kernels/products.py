"""Products of a packed matrix W (out × in, CSR) with a batch of vectors, over its live weights alone.

Batches come in blocks of :data:`LANES` vectors, transposed: shape (blocks, features, LANES). So the
innermost loop runs over vectors, at a stride of one, however the live weights are spread.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from . import loop

LANES: Final = 64
"""Vectors in a block: few enough that a block of some thousand features stays near a core."""

TILE: Final = 16
"""Features that are transposed together: one cache line of each vector."""


@loop
def to_blocks(vectors: Any, start: int, stop: int, blocks: Any) -> None:
    """Write ``vectors`` (n × features) into the blocks ``start`` … ``stop`` - 1, zeros after the last."""
    features = vectors.shape[1]
    for block in range(start, stop):
        some = vectors[block * LANES : (block + 1) * LANES]
        many = some.shape[0]
        for tile in range(0, features, TILE):
            source = some[:, tile : tile + TILE]
            target = blocks[block, tile : tile + TILE]
            for f in range(source.shape[1]):
                for b in range(many):
                    target[f, b] = source[b, f]
                for b in range(many, LANES):
                    target[f, b] = 0


@loop
def from_blocks(blocks: Any, start: int, stop: int, vectors: Any) -> None:
    """Write the blocks ``start`` … ``stop`` - 1 into ``vectors`` (n × features)."""
    features = vectors.shape[1]
    for block in range(start, stop):
        some = vectors[block * LANES : (block + 1) * LANES]
        for tile in range(0, features, TILE):
            source = blocks[block, tile : tile + TILE]
            target = some[:, tile : tile + TILE]
            for b in range(target.shape[0]):
                for f in range(target.shape[1]):
                    target[b, f] = source[f, b]


# Each loop keeps the row it works on in an array of its own, which the compiler knows to overlap with
# nothing; only then does it use vector instructions.


@loop(reorder=True)
def multiply(values: Any, pointers: Any, columns: Any, first: int, blocks: Any, out: Any) -> None:
    """Per block: ``out`` (out × LANES) = W times the block (in × LANES)."""
    for block in range(blocks.shape[0]):
        inputs = blocks[block]
        for row in range(out.shape[1]):
            total = np.zeros(LANES, values.dtype)
            k, end = pointers[first + row], pointers[first + row + 1]
            while k + 3 < end:  # four at a time, so that the total is written a quarter as often
                v, w, x, y = values[k], values[k + 1], values[k + 2], values[k + 3]
                one, two = inputs[columns[k]], inputs[columns[k + 1]]
                three, four = inputs[columns[k + 2]], inputs[columns[k + 3]]
                for b in range(LANES):
                    total[b] += v * one[b] + w * two[b] + x * three[b] + y * four[b]
                k += 4
            while k < end:
                v, one = values[k], inputs[columns[k]]
                for b in range(LANES):
                    total[b] += v * one[b]
                k += 1
            out[block, row] = total


@loop(reorder=True)
def multiply_transposed(values: Any, pointers: Any, columns: Any, first: int, blocks: Any, out: Any) -> None:
    """Per block: ``out`` (in × LANES) = Wᵀ times the block (out × LANES)."""
    out[:] = 0
    for block in range(blocks.shape[0]):
        for row in range(blocks.shape[1]):
            own = blocks[block, row].copy()
            for k in range(pointers[first + row], pointers[first + row + 1]):
                value, vector = values[k], out[block, columns[k]]
                for b in range(LANES):
                    vector[b] += value * own[b]


@loop(reorder=True)
def add_outer(
    total: Any,
    pointers: Any,
    columns: Any,
    first: int,
    start: int,
    stop: int,
    inputs: Any,
    gradients: Any,
) -> None:
    """Add to ``total`` the gradient of the live weights of rows ``start`` … ``stop`` - 1.

    It is summed over blocks: ``gradients`` (out × LANES) of the output by ``inputs`` (in × LANES).
    """
    for block in range(inputs.shape[0]):
        some = inputs[block]
        for row in range(start, stop):
            own = gradients[block, row].copy()
            k, end = pointers[first + row], pointers[first + row + 1]
            while k + 3 < end:
                one, two = some[columns[k]], some[columns[k + 1]]
                three, four = some[columns[k + 2]], some[columns[k + 3]]
                w = x = y = z = own[0] * 0
                for b in range(LANES):
                    w += own[b] * one[b]
                    x += own[b] * two[b]
                    y += own[b] * three[b]
                    z += own[b] * four[b]
                total[k] += w
                total[k + 1] += x
                total[k + 2] += y
                total[k + 3] += z
                k += 4
            while k < end:
                one = some[columns[k]]
                w = own[0] * 0
                for b in range(LANES):
                    w += own[b] * one[b]
                total[k] += w
                k += 1


@loop(reorder=True)
def multiply_nonzeros(vectors: Any, matrix: Any, start: int, stop: int, out: Any) -> None:
    """``out`` (n × out) = ``vectors`` (n × in, mostly zeros) times ``matrix`` (in × out), for some rows."""
    for row in range(start, stop):
        total = np.zeros(matrix.shape[1], matrix.dtype)
        for column in range(vectors.shape[1]):
            value = vectors[row, column]
            if value != 0:
                other = matrix[column]
                for c in range(total.size):
                    total[c] += value * other[c]
        out[row] = total


@loop(reorder=True)
def add_outer_nonzeros(vectors: Any, gradient: Any, start: int, stop: int, out: Any) -> None:
    """Add ``vectors``ᵀ ``gradient`` (n × out) to the rows ``start`` … ``stop`` - 1 of ``out`` (in × out)."""
    for row in range(vectors.shape[0]):
        own = gradient[row].copy()
        for column in range(start, stop):
            value = vectors[row, column]
            if value != 0:
                other = out[column]
                for c in range(own.size):
                    other[c] += value * own[c]
