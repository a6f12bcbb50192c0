"""Files of tensors and plain values: what is read is what was written, or one clear error; no code is run."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from recbole_dsl.errors import CheckpointError
from recbole_dsl.tensor_file import TYPES, is_tensor_file, read_tensor_file, read_tree, write_tensor_file
from tests.harm import Harm

KIND = ("recbole_dsl test", 3)

relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same(one: Any, other: Any) -> bool:
    """Equality of trees, of tensors bit for bit with type and shape, and of NaN with NaN."""
    if isinstance(one, Tensor):
        if not isinstance(other, Tensor) or (one.dtype, one.shape, one.layout) != (
            other.dtype,
            other.shape,
            other.layout,
        ):
            return False
        if one.layout == torch.sparse_coo:
            return same(one._indices(), other._indices()) and same(one._values(), other._values())
        if one.layout == torch.sparse_csr:
            parts = ("crow_indices", "col_indices", "values")
            return all(same(getattr(one, part)(), getattr(other, part)()) for part in parts)
        return torch.equal(bits(one), bits(other))
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor."""
    flat = tensor.contiguous().reshape(-1)
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8)  # a single element may have any stride


@st.composite
def tensors(draw) -> Tensor:
    """Of any type, of up to three dimensions, empty ones too, contiguous or not."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    tensor = (torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) * 9).to(
        draw(st.sampled_from(sorted(TYPES, key=str)))
    )
    return tensor.transpose(0, -1) if tensor.dim() > 1 and draw(st.booleans()) else tensor


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
keys = (
    st.text(max_size=5) | st.integers() | st.sampled_from(["$tensor", "$tuple", "$pairs", "$sparse", "$rows"])
)
trees = st.recursive(
    plain | tensors(),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.lists(inside, max_size=3).map(tuple)
        | st.dictionaries(keys, inside, max_size=3)
    ),
    max_leaves=12,
)


@relaxed
@given(tree=trees)
def test_what_is_read_is_what_was_written(tree: Any, tmp_path: Path) -> None:
    """Any nesting of dicts with any keys, lists, tuples, tensors and plain values."""
    write_tensor_file(tmp_path / "f", *KIND, tree)
    assert same(read_tensor_file(tmp_path / "f", *KIND), tree)
    assert is_tensor_file(tmp_path / "f") and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_single_element_of_any_stride(tmp_path: Path) -> None:
    """As a column of a matrix of one row is."""
    tree = {"a": torch.ones(3, 5)[:1, 2], "b": torch.arange(7)[3::4]}
    write_tensor_file(tmp_path / "f", *KIND, tree)
    assert same(read_tensor_file(tmp_path / "f", *KIND), tree)


def test_sparse_and_shared_tensors(tmp_path: Path) -> None:
    """Coordinates stay in their order; a tensor that occurs twice is stored once."""
    loose = torch.sparse_coo_tensor([[1, 0, 1], [2, 0, 2]], [1.0, 2.0, 3.0], (2, 3))
    big = torch.rand(10_000)
    write_tensor_file(tmp_path / "f", *KIND, {"a": big, "b": [big], "c": loose, "d": loose.coalesce()})
    assert 40_000 < (tmp_path / "f").stat().st_size < 42_000
    read = read_tensor_file(tmp_path / "f", *KIND)
    assert same(read["a"], big) and same(read["b"], [big])
    assert same(read["c"], loose) and not read["c"].is_coalesced() and read["d"].is_coalesced()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux")
def test_what_is_read_does_not_hold_the_file(tmp_path: Path) -> None:
    """A run that is resumed replaces it, which Windows refuses while it is mapped."""
    write_tensor_file(tmp_path / "held", *KIND, {"a": torch.rand(10_000)})
    read = read_tensor_file(tmp_path / "held", *KIND)
    assert str(tmp_path / "held") not in Path("/proc/self/maps").read_text() and read["a"].numel() == 10_000


def test_compressed_rows(tmp_path: Path) -> None:
    """Stay compressed rows, with the types of their indices."""
    rows = torch.sparse_csr_tensor(
        torch.tensor([0, 1, 3], dtype=torch.int32),
        torch.tensor([2, 0, 1], dtype=torch.int32),
        torch.rand(3),
        (2, 3),
    )
    write_tensor_file(tmp_path / "f", *KIND, [rows, rows.double()])
    assert same(read_tensor_file(tmp_path / "f", *KIND), [rows, rows.double()])


@pytest.mark.parametrize("where", [(0, 9), (9, 0), (0, -1)])
def test_indices_outside_their_matrix_are_refused(where: tuple[int, int], tmp_path: Path) -> None:
    """Torch would look for them in memory that is not the matrix's."""
    row, column = where
    unchecked = {"size": (2, 3), "check_invariants": False}
    for evil in (
        torch.sparse_coo_tensor(torch.tensor([[row], [column]]), torch.ones(1), **unchecked),
        torch.sparse_csr_tensor(
            torch.tensor([0, 1 + row, 1]), torch.tensor([column]), torch.ones(1), **unchecked
        ),
    ):
        write_tensor_file(tmp_path / "f", *KIND, evil)
        with pytest.raises(CheckpointError, match="cannot be decoded"):
            read_tensor_file(tmp_path / "f", *KIND)


def test_it_is_a_safetensors_file(tmp_path: Path) -> None:
    """Which other tools can read."""
    write_tensor_file(tmp_path / "f", *KIND, {"a": torch.arange(5)})
    assert [t.tolist() for t in load_file(tmp_path / "f").values()] == [[0, 1, 2, 3, 4]]


def test_the_tree_alone(tmp_path: Path) -> None:
    """None for tensors."""
    tree = {"a": torch.ones(2), "b": (torch.eye(2).to_sparse_csr(), torch.eye(2).to_sparse()), "c": "text"}
    write_tensor_file(tmp_path / "f", *KIND, tree)
    assert read_tree(tmp_path / "f", *KIND) == {"a": None, "b": (None, None), "c": "text"}


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", torch.ones(2, dtype=torch.complex64), 1j])
def test_nothing_else_is_written(value: Any, tmp_path: Path) -> None:
    """And an older file stays."""
    write_tensor_file(tmp_path / "f", *KIND, 1)
    with pytest.raises(TypeError, match="cannot be in a file"):
        write_tensor_file(tmp_path / "f", *KIND, [value])
    assert read_tensor_file(tmp_path / "f", *KIND) == 1


# --- files that are not as they were written -------------------------------------------------------

GOOD_TREE = {"weights": torch.arange(300.0), "state": {0: torch.ones(3)}, "name": "a run", "epoch": 3}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a file."""
    path = tmp_path_factory.mktemp("good") / "f"
    write_tensor_file(path, *KIND, GOOD_TREE)
    return path.read_bytes()


def refused(content: bytes, folder: Path) -> str:
    """The sentence with which a file of that content is refused."""
    path = folder / "damaged"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as told:
        read_tensor_file(path, *KIND)
    message = str(told.value)
    assert message.startswith(f"'{path}' cannot be read, because ") and message.endswith(".")
    assert "\n" not in message and len(message) < 400
    with contextlib.suppress(CheckpointError):
        read_tree(path, *KIND)  # which does not look at the checksum, but raises nothing else
    return message


@relaxed
@given(data=st.data())
def test_any_flipped_bit_is_found(data: st.DataObject, good: bytes, tmp_path: Path) -> None:
    """Wherever it is: length, header, checksum, contents."""
    place = data.draw(st.integers(0, 8 * len(good) - 1) | st.integers(0, 8 * 200))
    damaged = bytearray(good)
    damaged[place // 8] ^= 1 << (place % 8)
    refused(bytes(damaged), tmp_path)


@relaxed
@given(data=st.data())
def test_any_missing_or_added_bytes_are_found(data: st.DataObject, good: bytes, tmp_path: Path) -> None:
    """Cut off at any length, a piece taken out, or one put in."""
    start = data.draw(st.integers(0, len(good)))
    how = data.draw(st.sampled_from(["cut", "remove", "insert"]))
    if how == "cut":
        damaged = good[: min(start, len(good) - 1)]
    elif how == "remove":
        damaged = good[:start] + good[start + data.draw(st.integers(1, 50)) :]
    else:
        damaged = good[:start] + data.draw(st.binary(min_size=1, max_size=20)) + good[start:]
    if damaged != good:
        refused(damaged, tmp_path)


@relaxed
@given(content=st.binary(max_size=300))
def test_anything_else_is_refused(content: bytes, tmp_path: Path) -> None:
    """Random bytes."""
    refused(content, tmp_path)


def test_reasons_are_told(good: bytes, tmp_path: Path) -> None:
    """Empty, foreign, of another kind, from a later version, of absurd length."""
    assert "it is empty" in refused(b"", tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / "foreign")
    assert "no file of recbole_dsl" in refused((tmp_path / "foreign").read_bytes(), tmp_path)
    assert "no file of recbole_dsl" in refused(b"\xff" * 7 + b"\x00" + good[8:], tmp_path)
    write_tensor_file(tmp_path / "other", "recbole_dsl artifact", 3, GOOD_TREE)
    assert "it is a recbole_dsl artifact" in refused((tmp_path / "other").read_bytes(), tmp_path)
    write_tensor_file(tmp_path / "later", KIND[0], 4, GOOD_TREE)
    assert "form 4" in refused((tmp_path / "later").read_bytes(), tmp_path)
    assert "damaged" in refused(good[:-1] + bytes([good[-1] ^ 1]), tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        read_tensor_file(tmp_path / "nowhere", *KIND)
    with pytest.raises(CheckpointError, match="directory"):
        read_tensor_file(tmp_path, *KIND)


def signed(header: dict[str, Any], data: bytes = b"") -> bytes:
    """A file with a right checksum over any header, as somebody with bad intentions would make it."""
    import hashlib

    header["__metadata__"] |= {"kind": KIND[0], "schema": str(KIND[1]), "sha256": "0" * 64}
    text = json.dumps(header).encode()
    digest = hashlib.sha256(text + data).hexdigest()
    return len(text).to_bytes(8, "little") + text.replace(b"0" * 64, digest.encode(), 1) + data


EVIL_HEADERS: list[dict[str, Any]] = [
    {"__metadata__": {"tree": '{"$tensor": "nowhere"}'}},
    {"__metadata__": {"tree": '{"$tensor": ["a"]}'}},
    {"__metadata__": {"tree": '{"$sparse": [1]}'}},
    {"__metadata__": {"tree": '{"$rows": [1]}'}},
    {"__metadata__": {"tree": '{"$pairs": 5}'}},
    {"__metadata__": {"tree": '{"$pairs": [[[], 1]]}'}},
    {"__metadata__": {"tree": "no json"}},
    {"__metadata__": {"tree": "[" * 100_000}},
    {"__metadata__": {"tree": 5}},
    {
        "__metadata__": {"tree": '{"$tensor": "a"}'},
        "a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]},
    },
    {
        "__metadata__": {"tree": '{"$tensor": "a"}'},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    },
    {
        "__metadata__": {"tree": '{"$tensor": "a"}'},
        "a": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 8]},
    },
]


@pytest.mark.parametrize("number", range(len(EVIL_HEADERS)))
def test_a_file_made_to_harm_is_one_sentence(number: int, tmp_path: Path) -> None:
    """With a checksum that fits."""
    refused(signed(json.loads(json.dumps(EVIL_HEADERS[number])), b"\0" * 8), tmp_path)


def test_a_signed_file_is_read(tmp_path: Path) -> None:
    """So the files above are refused for what is in them."""
    header = {
        "__metadata__": {"tree": '{"$tensor": "a"}'},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }
    (tmp_path / "f").write_bytes(signed(header, b"\0" * 8))
    assert read_tensor_file(tmp_path / "f", *KIND).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("how", ["raw", "zip", "legacy"])
def test_a_pickle_runs_nothing(how: str, tmp_path: Path) -> None:
    """Neither a bare one nor what torch.save writes."""
    harm, path = Harm(tmp_path / "harm"), tmp_path / "evil.dsl"
    if how == "raw":
        path.write_bytes(pickle.dumps(harm))
    else:
        torch.save({"state_dict": harm}, path, _use_new_zipfile_serialization=how == "zip")
    message = refused(path.read_bytes(), tmp_path)
    assert "pickle" in message and not (tmp_path / "harm").exists()
