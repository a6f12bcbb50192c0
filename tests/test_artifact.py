"""Artifacts: what is read is what was written, in the bytes that were promised, or one clear error."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from recbole_dsl.errors import ArtifactError
from recbole_dsl.files import temporary_folder
from recbole_dsl.planning import Group, Table, artifact_bytes
from recbole_dsl.serving import artifact as artifacts
from recbole_dsl.serving.artifact import (
    CATALOGUE,
    INTERACTIONS,
    MANIFEST,
    WEIGHTS,
    Manifest,
    packed_tensors,
    read_artifact,
    read_manifest,
    write_artifact,
)
from recbole_dsl.serving.quantise import VALUES, decode, encode
from recbole_dsl.serving.recommender import SparseRecommender
from recbole_dsl.serving.table import SparseTable, is_table, pointers_of, smallest_unsigned
from recbole_dsl.serving.tokens import Tokens

relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_table(rows: int, width: int, density: float, seed: int = 0) -> SparseTable:
    """A table with uniformly drawn live positions; rows may be empty."""
    draw = np.random.default_rng(seed)
    mask = draw.random((rows, width)) < density
    columns = np.nonzero(mask)[1].astype(smallest_unsigned(max(0, width - 1)))
    values = draw.standard_normal(len(columns)).astype(np.float32)
    return SparseTable(values, columns, pointers_of(mask.sum(1)), width)


def write_some(folder: Path, values: str = "fp32", replace: bool = False, **changes: Any) -> Manifest:
    """A small artifact of two tables, with graph and history."""
    users, items = random_table(7, 6, 0.4), random_table(9, 6, 0.4, seed=1)
    arrays, described = packed_tensors({"users": users, "items": items, "bias": np.ones(3, np.float32)}, values)
    counts = np.array([0, 2, 1, 0, 3, 0, 1], np.uint8)
    manifest = Manifest(
        model="BPR", dataset="some", form="vectors", encoder="tables", options={"activation": None},
        values=values, users=7, items=9, density=0.4, history=True, tensors=described,
        sizes={"live": len(users.values), "sparse_weights": 24, "dense_fp32": 96},
        metrics={}, config={}, created={}, **changes,
    )  # fmt: skip
    catalogue = {
        **Tokens.arrays_of([f"u{i}" for i in range(6)], "users"), **Tokens.arrays_of(list("abcdefgh"), "items"),
        "popularity": np.arange(9, dtype=np.uint8),
    }  # fmt: skip
    interactions = {"history#counts": counts, "history#items": np.array([1, 2, 3, 4, 5, 6, 8], np.uint8)}
    return write_artifact(folder, manifest, arrays, catalogue, interactions, replace)


# --- values ----------------------------------------------------------------------------------------


@st.composite
def rows_of_values(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Finite float32 values, of any size, and the lengths of the rows they are in."""
    counts = np.array(draw(st.lists(st.integers(0, 5), max_size=8)), np.int64)
    numbers = st.floats(-60000, 60000, width=32)
    total = int(counts.sum())
    return np.array(draw(st.lists(numbers, min_size=total, max_size=total)), np.float32), counts


@relaxed
@given(rows_of_values())
def test_values_come_back(rows: tuple[np.ndarray, np.ndarray]) -> None:
    """Exactly, or rounded as torch rounds, or to the nearest step of their row."""
    values, counts = rows
    for kind in VALUES:
        stored, scales, factor = encode(values, counts, kind)
        back = decode(stored, counts, kind, scales, factor)
        assert back.dtype == np.float32 and back.shape == values.shape
        if kind == "fp32":
            assert np.array_equal(back, values)
        elif kind in ("fp16", "bf16"):
            type_ = torch.float16 if kind == "fp16" else torch.bfloat16
            assert np.array_equal(back, torch.from_numpy(values).to(type_).float().numpy())
        else:
            assert scales is not None and scales.dtype == np.float16 and stored.dtype == np.int8
            step = np.repeat(scales.astype(np.float32) * np.float32(factor), counts)
            # A scale in half precision may be off by 2^-11 of itself, or 2^-25 of the largest, 127 times over.
            assert (np.abs(back - values) <= step * (0.5 + 127 / 2048) + 127 * factor * 2**-25 + 1e-30).all()


def test_int8_by_hand() -> None:
    """The largest of a row is 127 steps; a row of zeros has the scale zero."""
    values = np.array([1.27, -0.5, 0.004, 12.7, 0.0], np.float32)
    stored, scales, factor = encode(values, np.array([3, 0, 1, 1]), "int8")
    assert stored.tolist() == [127, -50, 0, 127, 0]
    assert scales is not None and scales.tolist() == [np.float16(0.1), 0, 1, 0]
    assert factor == pytest.approx(0.1)


@pytest.mark.parametrize("ratio", [1e-6, 2e-7, 8.9e-8, 2e-8])
def test_rows_far_below_the_largest_keep_their_direction(ratio: float) -> None:
    """Their scales have few bits in half precision; a user's ranking does not ask how long a row is."""
    row = np.linspace(-1, 1, 64, dtype=np.float32) * np.float32(ratio)
    values, counts = np.concatenate([np.ones(1, np.float32), row]), np.array([1, 64])
    stored, scales, factor = encode(values, counts, "int8")
    back = decode(stored, counts, "int8", scales, factor)[1:]
    assert back @ row / np.linalg.norm(back) / np.linalg.norm(row) > 0.999


def test_too_large_for_half_precision() -> None:
    """One sentence, not infinity."""
    with pytest.raises(
        ArtifactError, match=r"fp16 cannot hold weights of 7e\+04; allowed are weights below 65504"
    ):
        encode(np.array([7e4], np.float32), np.array([1]), "fp16")


def test_a_manifest_without_sizes_is_refused(tmp_path: Path) -> None:
    """Though its checksum is right: they are what inspect tells."""
    write_some(tmp_path / "a")
    file = tmp_path / "a" / MANIFEST
    body = json.loads(file.read_text())
    del body["sha256"], body["sizes"]["dense_fp32"]
    file.write_text(json.dumps({**body, "sha256": artifacts._checksum(body)}))
    with pytest.raises(
        ArtifactError, match=r"is not as this package writes it \(ValueError: sizes are missing\)"
    ):
        read_manifest(tmp_path / "a")


@pytest.mark.parametrize(
    "metrics",
    [{"trained": {"ndcg@10": 0.1}}, {"trained": 1, "artifact": 1},
     {"trained": {}, "artifact": {"ndcg@10": 0.1}},
     {"trained": {"ndcg@10": "high"}, "artifact": {"ndcg@10": 0.1}}],
)  # fmt: skip
def test_metrics_of_another_form_are_refused(metrics: dict[str, Any], tmp_path: Path) -> None:
    """Which inspect shows."""
    write_some(tmp_path / "a")
    file = tmp_path / "a" / MANIFEST
    body = {**json.loads(file.read_text()), "metrics": metrics}
    del body["sha256"]
    file.write_text(json.dumps({**body, "sha256": artifacts._checksum(body)}))
    with pytest.raises(ArtifactError, match="its metrics are others"):
        read_manifest(tmp_path / "a")


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(
    "rows, width, density", [(400, 64, 0.1), (300, 300, 0.05), (50, 16, 1.0), (40, 255, 0.3)]
)
def test_bytes_are_those_of_the_plan(values: str, rows: int, width: int, density: float) -> None:
    """Values, ids, counts and scales, and nothing else; dense where that is less."""
    table = random_table(rows, width, density)
    arrays, _ = packed_tensors({"table": table}, values)
    measured = sum(a.nbytes for a in arrays.values())
    group = Group((Table("table", rows, width),), len(table.values))
    assert measured == min(
        artifact_bytes(group, values, sparse=True), artifact_bytes(group, values, sparse=False)
    )


def test_shares_of_the_dense_table() -> None:
    """At density 0.1 and 64 columns: at most 0.145 with float32, 0.065 with eight bits, headers included."""
    table = random_table(20_000, 64, 0.1)
    for values, most in {"fp32": 0.145, "fp16": 0.09, "bf16": 0.09, "int8": 0.065}.items():
        arrays, _ = packed_tensors({"users": table}, values)
        assert len(artifacts._safetensors(arrays)) <= most * table.shape[0] * 64 * 4


@relaxed
@given(st.integers(0, 9), st.integers(1, 300), st.floats(0, 1), st.integers(0, 99))
def test_what_is_a_table(rows: int, width: int, density: float, seed: int) -> None:
    """Every table is one; with two columns of a row exchanged, or repeated, or one too large, it is none."""
    table = random_table(rows, width, density, seed)
    counts = table.counts
    assert is_table(table.columns, counts, width)
    assert np.array_equal(table.dense()[table.row_numbers(), table.columns], table.values)
    wide = np.flatnonzero(counts > 1)
    if len(wide):
        place = table.pointers[wide[0]]
        swapped = table.columns.copy()
        swapped[[place, place + 1]] = swapped[[place + 1, place]]
        repeated = table.columns.copy()
        repeated[place + 1] = repeated[place]
        assert not is_table(swapped, counts, width) and not is_table(repeated, counts, width)
    if len(table.columns):
        assert not is_table(table.columns, counts, int(table.columns.max()))
        assert not is_table(table.columns[1:], counts, width)


# --- names -----------------------------------------------------------------------------------------

numbers = st.lists(st.integers(-(10**15), 10**17).map(str), unique=True, max_size=20)
texts = st.lists(st.text(max_size=6), unique=True, max_size=20)


@relaxed
@given(
    st.one_of(
        numbers,
        texts,
        st.lists(st.sampled_from(["0", "00", "-0", "--5", "-", "1.0", "+1", "١", " 1", "7"]), unique=True),
    )
)
def test_tokens_come_back(tokens: list[str]) -> None:
    """Every token has its number and every number its token; others have none."""
    arrays = Tokens.arrays_of(tokens, "users")
    known = Tokens.of_arrays(arrays, "users")
    assert len(known) == len(tokens) + 1
    assert [known[number] for number in range(1, len(known))] == tokens
    assert [known.number(token) for token in tokens] == list(range(1, len(known)))
    for other in ("", "x", "007", "-", "12345678901234567890123", "٣"):
        assert (known.number(other) is None) == (other not in tokens)


def test_whole_numbers_take_few_bytes() -> None:
    """A thousand small numbers take two bytes each."""
    arrays = Tokens.arrays_of([str(n) for n in range(1000)], "items")
    assert {name: array.nbytes for name, array in arrays.items()} == {"items#numbers": 2000}


# --- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", VALUES)
def test_an_artifact_comes_back(values: str, tmp_path: Path) -> None:
    """Tables, names and interactions; the manifest's checksums and sizes are those of the files."""
    written = write_some(tmp_path / "a", values)
    read = read_artifact(tmp_path / "a")
    assert read.manifest == written == read_manifest(tmp_path / "a")
    users = read.tensors["users"]
    assert isinstance(users, SparseTable)
    tolerance = {"fp32": 0, "fp16": 1e-3, "bf16": 1e-2, "int8": 2e-2}[values]
    assert np.abs(users.dense() - random_table(7, 6, 0.4).dense()).max() <= tolerance
    assert np.array_equal(read.tensors["bias"], np.ones(3))
    files = {p.name for p in (tmp_path / "a").iterdir()}
    assert files == {MANIFEST, WEIGHTS, CATALOGUE, INTERACTIONS}
    for name, entry in written.files.items():
        contents = (tmp_path / "a" / name).read_bytes()
        assert entry == {"bytes": len(contents), "sha256": hashlib.sha256(contents).hexdigest()}
    assert written.sizes["files"] == sum(entry["bytes"] for entry in written.files.values())
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    """Nor another's folder with replace; an artifact is replaced whole."""
    write_some(tmp_path / "a")
    before = (tmp_path / "a" / WEIGHTS).read_bytes()
    with pytest.raises(ArtifactError, match="exists; allowed is another name, or --force"):
        write_some(tmp_path / "a", "int8")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == before
    write_some(tmp_path / "a", "int8", replace=True)
    assert read_manifest(tmp_path / "a").values == "int8"
    (tmp_path / "a" / "thesis.tex").write_text("mine")
    with pytest.raises(ArtifactError, match=r"has other files than an artifact's .'thesis\.tex'."):
        write_some(tmp_path / "a", replace=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("mine")
    (tmp_path / "c").write_text("mine")
    for name, content in (("d", '{"name": "an app"}'), ("e", "[" * 100_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text(content)
    for name in "bcde":
        with pytest.raises(ArtifactError, match="exists and is no artifact"):
            write_some(tmp_path / name, replace=True)
    (tmp_path / "empty").mkdir()
    write_some(tmp_path / "empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c", "d", "e", "empty"]
    assert (tmp_path / "d" / MANIFEST).read_text() == '{"name": "an app"}'


def test_a_link_to_an_artifact_stays_one(tmp_path: Path) -> None:
    """What it names is replaced."""
    write_some(tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    write_some(tmp_path / "current", "int8", replace=True)
    assert (tmp_path / "current").is_symlink() and not (tmp_path / "v1").is_symlink()
    assert read_manifest(tmp_path / "v1").values == "int8"


def test_what_comes_to_the_folder_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another artifact, or somebody's folder, made while the files are written."""

    def meanwhile(change: Any) -> None:
        def written(*arguments: Any) -> Any:
            monkeypatch.undo()
            change()
            return plain(*arguments)

        plain = artifacts._write
        monkeypatch.setattr(artifacts, "_write", written)

    meanwhile(lambda: write_some(tmp_path / "a", "int8"))
    with pytest.raises(ArtifactError, match="a' exists; allowed is another name, or --force"):
        write_some(tmp_path / "a")
    assert read_manifest(tmp_path / "a").values == "int8"

    def mine() -> None:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "thesis.tex").write_text("mine")

    for replace in (False, True):
        meanwhile(mine)
        with pytest.raises(ArtifactError, match="exists and is no artifact"):
            write_some(tmp_path / "b", replace=replace)
        assert (tmp_path / "b" / "thesis.tex").read_text() == "mine"
        shutil.rmtree(tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_put_back_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the new name nor the old one can be given: the old artifact lies beside, whole."""
    write_some(tmp_path / "a")
    plain = os.rename

    def rename(source: Any, target: Any) -> None:
        if Path(target) == tmp_path / "a":
            raise OSError(13, "Permission denied")
        plain(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(ArtifactError, match="cannot be written"):
            write_some(tmp_path / "a", "int8", replace=True)
    (left,) = tmp_path.iterdir()
    assert read_manifest(left / "old").values == "fp32"


@pytest.mark.skipif(os.name != "posix", reason="other systems do not say whether a process lives")
@pytest.mark.parametrize("kept", [True, False])
def test_what_a_killed_export_leaves(kept: bool, tmp_path: Path) -> None:
    """Its folders are removed by the next one, and an artifact that lost its name has it again."""
    write_some(tmp_path / "a")
    telling = [sys.executable, "-c", "import os; print(os.getpid())"]
    ended = subprocess.run(telling, capture_output=True, text=True).stdout.strip()
    folder = temporary_folder(tmp_path / "a")
    left = folder.rename(tmp_path / folder.name.replace(f"-{os.getpid()}-", f"-{ended}-"))
    (left / "manifest.json").write_text("{")
    if not kept:
        (tmp_path / "a").rename(left / "old")
        with pytest.raises(ArtifactError, match="a' exists; allowed"):
            write_some(tmp_path / "a", "int8")
        assert read_manifest(tmp_path / "a").values == "fp32"
    write_some(tmp_path / "a", "int8", replace=True)
    assert read_manifest(tmp_path / "a").values == "int8"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("fails_at", range(1, 10))
def test_a_write_that_breaks_off(fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call of the system fails, the old artifact is there, whole, and nothing else."""
    write_some(tmp_path / "a")
    calls = 0

    def failing(plain: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise OSError(28, "No space left on device")
            return plain(*arguments, **more)

        return call

    with monkeypatch.context() as patch:
        for name in ("fsync", "rename", "chmod"):
            patch.setattr(os, name, failing(getattr(os, name)))
        try:
            write_some(tmp_path / "a", "int8", replace=True)
            broke = False
        except ArtifactError as error:
            broke = True
            assert "cannot be written (No space left on device)" in str(error)
    # Four files, the folder's mode, a first name that is taken in any case, two names.
    assert broke == (fails_at <= 8 and fails_at != 6)
    assert read_artifact(tmp_path / "a").manifest.values == ("fp32" if broke else "int8")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@relaxed
@given(
    st.sampled_from([MANIFEST, WEIGHTS, CATALOGUE, INTERACTIONS]), st.integers(0, 10**6), st.integers(1, 255)
)
@example(MANIFEST, 2, ord(" ") ^ ord("\t"))  # a space of the first line, after its brace and end
def test_a_changed_byte_is_seen(tmp_path: Path, name: str, place: int, change: int) -> None:
    """Anywhere in any file."""
    folder = tmp_path / "a"
    if not folder.exists():
        write_some(folder)
    good = (folder / name).read_bytes()
    bad = bytearray(good)
    bad[place % len(bad)] ^= change
    expected = read_artifact(folder).manifest
    (folder / name).write_bytes(bad)
    try:
        if name == MANIFEST and says_the_same(bad, good):
            assert read_artifact(folder).manifest == expected
        else:
            refused(folder)
    finally:
        (folder / name).write_bytes(good)


def says_the_same(one: bytes, other: bytes) -> bool:
    """Whether two files are the same JSON: between its parts a space may become a tab or a line's end."""
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


@relaxed
@given(
    st.sampled_from([MANIFEST, WEIGHTS, CATALOGUE, INTERACTIONS]), st.integers(0, 10**6), st.binary(max_size=9)
)
def test_a_file_that_is_cut_off_or_longer(tmp_path: Path, name: str, end: int, more: bytes) -> None:
    """Is refused as well."""
    folder = tmp_path / "a"
    if not folder.exists():
        write_some(folder)
    good = (folder / name).read_bytes()
    bad = good[: end % len(good)] if not more else good + more
    if bad.strip() == good.strip() and name == MANIFEST:
        return  # spaces after JSON mean nothing
    (folder / name).write_bytes(bad)
    try:
        refused(folder)
    finally:
        (folder / name).write_bytes(good)


def refused(folder: Path) -> str:
    """The one sentence with which an artifact is refused."""
    with pytest.raises(ArtifactError) as caught:
        SparseRecommender.load(folder)
    text = str(caught.value)
    assert "\n" not in text and "cannot be served, because" in text and text.count("; allowed is ") == 1
    return text


def rewritten(folder: Path, change: Any) -> None:
    """Change a manifest and make its checksum right again, as somebody who means harm would."""
    body = json.loads((folder / MANIFEST).read_text())
    change(body)
    body.pop("sha256", None)
    body["sha256"] = artifacts._checksum(body)
    (folder / MANIFEST).write_text(json.dumps(body))


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "weights.safetensors/../x", "..", "C:\\x", "extra"]
)
def test_names_are_never_paths(name: str, tmp_path: Path) -> None:
    """Only the names of an artifact's own files are looked at."""
    write_some(tmp_path / "a")
    (tmp_path / "secret").write_text("secret")
    rewritten(tmp_path / "a", lambda body: body["files"].update({name: {"bytes": 6, "sha256": "0" * 64}}))
    assert "files may be weights.safetensors, catalogue.safetensors, interactions.safetensors only" in refused(
        tmp_path / "a"
    )


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda body: body.update(version=2), "version 2 of the format, and this package reads version 1"),
        (lambda body: body.update(format="zip"), "another format"),
        (lambda body: body.update(values="fp8"), "out of range"),
        (lambda body: body.update(form="magic"), "not known here"),
        (lambda body: body.update(encoder="tabels"), "did you mean 'tables'"),
        (lambda body: body.update(items=10), "other numbers of users"),
        (lambda body: body.update(options={"activation": "eval"}), "activation"),
        (lambda body: body["tensors"].pop("users"), "does not hold the tensors"),
        (lambda body: body["tensors"]["users"].update(shape=[7, 3]), "'users' is not as"),
        (lambda body: body["tensors"]["users"].update(shape=[7, 2**60]), "shape is out of range"),
        (lambda body: body["tensors"]["users"].update(shape=[]), "shape is out of range"),
        (lambda body: body["tensors"]["users"].update(live=None), "does not hold the tensors"),
        (lambda body: body["tensors"]["items"].update(live=10**12), "'items' is not as"),
        (lambda body: body["tensors"]["items"].update(factor=float("1e999")), "manifest.json"),
        (lambda body: body["tensors"].update(users=3), "manifest.json is not as"),
        (lambda body: body["files"].pop(WEIGHTS), "files may be"),
        (lambda body: body.pop("model"), "keys are others"),
        (lambda body: body.update(history="yes"), "history is no bool"),
    ],
)
def test_a_manifest_that_was_made_to_harm(change: Any, says: str, tmp_path: Path) -> None:
    """With a right checksum."""
    write_some(tmp_path / "a")
    try:
        rewritten(tmp_path / "a", change)
    except ValueError:  # what JSON cannot hold
        return
    assert says in refused(tmp_path / "a")


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@relaxed
@given(st.data())
def test_any_manifest_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever is put in place of a part of it, with a right checksum: never another error."""
    folder = tmp_path / "a"
    if not folder.exists():
        write_some(folder)
    good = (folder / MANIFEST).read_bytes()

    def change(body: dict[str, Any]) -> None:
        place: Any = body
        key = data.draw(st.sampled_from(sorted(place)))
        while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            key = data.draw(st.sampled_from(sorted(place)))
        place[key] = data.draw(anything)

    try:
        rewritten(folder, change)
        SparseRecommender.load(folder)
    except ArtifactError as error:
        assert "\n" not in str(error)
    except ValueError as error:
        assert "JSON compliant" in str(error)  # infinity: it could not be written
    finally:
        (folder / MANIFEST).write_bytes(good)


@relaxed
@given(st.data())
def test_any_arrays_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Arrays of other types, shapes and contents, with right checksums: never another error."""
    folder = tmp_path / "b"
    if folder.exists():
        for file in folder.iterdir():
            file.unlink()
    write_some(folder)
    from safetensors.numpy import load, save

    name = data.draw(st.sampled_from([WEIGHTS, CATALOGUE, INTERACTIONS]))
    arrays = load((folder / name).read_bytes())
    key = data.draw(st.sampled_from(sorted(arrays)))
    kind = data.draw(st.sampled_from(["uint8", "int8", "uint16", "int64", "float16", "float32", "bool"]))
    shape = data.draw(st.one_of(st.just(arrays[key].shape), st.lists(st.integers(0, 4), max_size=3)))
    contents = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 255, shape)
    arrays[key] = contents.astype(kind)
    (folder / name).write_bytes(save(arrays))
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    size = (folder / name).stat().st_size
    rewritten(folder, lambda body: body["files"].update({name: {"bytes": size, "sha256": digest}}))
    try:
        recommender = SparseRecommender.load(folder)
    except ArtifactError as error:
        assert "\n" not in str(error)
    else:
        users = [*recommender.users, "nobody"]
        recommender.recommend(users, k=20, exclude_seen=recommender.has_history, unknown="popular")


@pytest.mark.parametrize("what", ["nothing", "file", "no manifest", "pickle"])
def test_what_is_no_artifact(what: str, tmp_path: Path) -> None:
    """One sentence."""
    folder = tmp_path / "a"
    if what == "file":
        folder.write_text("x")
    elif what != "nothing":
        folder.mkdir()
    if what == "pickle":
        (folder / MANIFEST).write_bytes(b"\x80\x04cos\nsystem\n(S'touch harm'\ntR.")
    refused(folder)
    assert not (tmp_path / "harm").exists()


def test_manifest_says_all_of_itself(tmp_path: Path) -> None:
    """It is JSON that any tool reads, and its checksum covers the rest."""
    write_some(tmp_path / "a")
    body = json.loads((tmp_path / "a" / MANIFEST).read_text())
    assert (body["format"], body["version"]) == ("recbole_dsl artifact", 1)
    assert set(body) == {f.name for f in dataclasses.fields(Manifest)} | {"format", "version", "sha256"}
