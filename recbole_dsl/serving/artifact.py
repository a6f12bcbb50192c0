"""The folder of a served model: a manifest in JSON, and safetensors files whose checksums it holds.

It is written whole or not at all, and what is read is what was written: nothing of a file is used before
its checksum is found right, no code is run, and no name in the manifest is ever used as a path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..errors import ArtifactError, on_one_line
from ..files import abandoned, temporary_folder, usual_mode
from .quantise import STORED, VALUES, decode, encode
from .table import SparseTable, is_table, pointers_of, smallest_unsigned, sparse_bytes

FORMAT: Final = "recbole_dsl artifact"
VERSION: Final = 1
MANIFEST: Final = "manifest.json"
WEIGHTS: Final = "weights.safetensors"
CATALOGUE: Final = "catalogue.safetensors"
INTERACTIONS: Final = "interactions.safetensors"
FILES: Final = (WEIGHTS, CATALOGUE, INTERACTIONS)
"""All names a file of an artifact may have, besides the manifest."""

Arrays = dict[str, np.ndarray]

_SIZES: Final = ("live", "sparse_weights", "weights_file", "dense_fp32")

_LARGEST_MANIFEST: Final = 1 << 26

_OLD: Final = "old"
"""The name of an artifact, in a temporary folder, while another one takes its place."""


@dataclass(frozen=True)
class TensorInfo:
    """How a tensor is stored: its ``shape``, and of a sparse one how many weights are ``live``.

    ``factor`` is that of :func:`recbole_dsl.serving.quantise.encode`. ``exact``: float32 whatever the
    artifact's values are, as biases are.
    """

    shape: tuple[int, ...]
    live: int | None = None
    factor: float = 1.0
    exact: bool = False


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and holds. ``users`` and ``items`` count the padding row, number 0."""

    model: str
    dataset: str
    form: str
    encoder: str
    options: dict[str, Any]
    values: str
    users: int
    items: int
    density: float
    history: bool
    tensors: dict[str, TensorInfo]
    sizes: dict[str, int]
    metrics: dict[str, Any]
    config: dict[str, Any]
    created: dict[str, str]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As in the file, with the checksum of all the rest."""
        body = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        return {**body, "sha256": _checksum(body)}


@dataclass(frozen=True)
class Artifact:
    """The contents of an artifact: tensors by name, and the arrays of the other files."""

    manifest: Manifest
    tensors: dict[str, SparseTable | np.ndarray]
    catalogue: Arrays
    interactions: Arrays
    folder: Path


def _checksum(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# --- tensors ---------------------------------------------------------------------------------------


def packed_tensors(
    tensors: Mapping[str, SparseTable | np.ndarray], values: str
) -> tuple[Arrays, dict[str, TensorInfo]]:
    """Tensors as arrays of :data:`WEIGHTS`, each sparse or dense, whichever takes fewer bytes.

    A sparse tensor ``name`` is ``name#values``, ``name#columns`` and ``name#counts`` (live weights of each
    row), a dense one ``name#values``; ``int8`` adds ``name#scales``. Vectors, as biases are, stay float32;
    other than floating-point tensors stay what they are.
    """
    arrays: Arrays = {}
    described: dict[str, TensorInfo] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, np.ndarray) and (tensor.ndim < 2 or tensor.dtype != np.float32):
            arrays[f"{name}#values"] = tensor
            described[name] = TensorInfo(tensor.shape, exact=True)
            continue
        matrix = _smaller_form(tensor, np.dtype(STORED[values]).itemsize)
        if isinstance(matrix, SparseTable):
            shape, live, flat, counts = matrix.shape, len(matrix.values), matrix.values, matrix.counts
            arrays[f"{name}#columns"] = matrix.columns
            arrays[f"{name}#counts"] = counts.astype(smallest_unsigned(matrix.width))
        else:
            shape, live, flat = matrix.shape, None, np.ascontiguousarray(matrix).reshape(-1)
            counts = _dense_counts(shape)
        stored, scales, factor = encode(flat, counts, values)
        arrays[f"{name}#values"] = stored
        if scales is not None:
            arrays[f"{name}#scales"] = scales
        described[name] = TensorInfo(shape, live, factor)
    return arrays, described


def _dense_counts(shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape[0], math.prod(shape[1:]), np.int64)


def _smaller_form(tensor: SparseTable | np.ndarray, itemsize: int) -> SparseTable | np.ndarray:
    if not isinstance(tensor, SparseTable):
        return tensor
    sparse = sparse_bytes(len(tensor.values), tensor.shape, itemsize)
    return tensor if sparse < math.prod(tensor.shape) * itemsize else tensor.dense()


def unpacked_tensors(manifest: Manifest, arrays: Arrays, place: Path) -> dict[str, SparseTable | np.ndarray]:
    """The tensors of :func:`packed_tensors`, float32, each part checked against what the manifest says."""
    expected = {
        f"{name}#{part}" for name, info in manifest.tensors.items() for part in _parts(info, manifest.values)
    }
    if expected != set(arrays):
        raise refusal(place, f"{WEIGHTS} does not hold the tensors that {MANIFEST} names")
    return {
        name: _unpacked(name, info, manifest.values, arrays, place) for name, info in manifest.tensors.items()
    }


def _parts(info: TensorInfo, values: str) -> list[str]:
    parts = ["values"] if info.live is None else ["values", "columns", "counts"]
    return [*parts, "scales"] if values == "int8" and not info.exact else parts


def _unpacked(
    name: str, info: TensorInfo, values: str, arrays: Arrays, place: Path
) -> SparseTable | np.ndarray:
    damaged = refusal(place, f"tensor {name!r} is not as {MANIFEST} says")
    stored = arrays[f"{name}#values"]
    if info.exact:
        if stored.shape != info.shape:
            raise damaged
        return stored
    sparse = info.live is not None
    if sparse and len(info.shape) != 2:
        raise damaged
    rows = info.shape[0]
    columns = arrays[f"{name}#columns"] if sparse else None
    counts = arrays[f"{name}#counts"] if sparse else _dense_counts(info.shape)
    total = info.live if sparse else math.prod(info.shape)
    scales = arrays.get(f"{name}#scales")
    unsigned = all(
        part.dtype.kind == "u" and part.ndim == 1 for part in (columns, counts) if sparse and part is not None
    )
    if (
        not unsigned
        or stored.shape != (total,)
        or stored.dtype != STORED[values]
        or counts.shape != (rows,)
        or (columns is not None and (columns.shape != (total,) or not is_table(columns, counts, info.shape[1])))
        or (scales is not None and (scales.dtype != np.float16 or scales.shape != (rows,)))
    ):
        raise damaged
    decoded = decode(stored, counts, values, scales, info.factor)
    if not np.isfinite(decoded).all():
        raise refusal(place, f"tensor {name!r} holds numbers that are not finite")
    if columns is None:
        return decoded.reshape(info.shape)
    return SparseTable(decoded, columns, pointers_of(counts), info.shape[1])


# --- files -----------------------------------------------------------------------------------------


def write_artifact(
    folder: str | os.PathLike[str],
    manifest: Manifest,
    weights: Arrays,
    catalogue: Arrays,
    interactions: Arrays,
    replace: bool = False,
) -> Manifest:
    """Write an artifact, whole or not at all; returns its manifest with sizes and checksums of the files.

    Args:
        replace: an artifact that is there may be replaced. Anything else that is there never is.

    Raises:
        ArtifactError: something is there, or cannot be written.
    """
    target = Path(folder).resolve()  # a link stays, and what it names is replaced
    temporary: Path | None = None
    try:
        _recover(target)
        refuse_occupied(target, replace)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_folder(target)
        written = {
            name: _write(temporary / name, _safetensors(arrays))
            for name, arrays in zip(FILES, (weights, catalogue, interactions), strict=True)
            if arrays
        }
        sizes = {**manifest.sizes, "files": sum(int(entry["bytes"]) for entry in written.values())}
        sizes["weights_file"] = int(written[WEIGHTS]["bytes"])
        whole = dataclasses.replace(manifest, files=written, sizes=sizes)
        text = json.dumps(whole.to_json(), indent=1, allow_nan=False)
        _write(temporary / MANIFEST, text.encode())
        os.chmod(temporary, usual_mode(0o777))
        _take_the_place_of(target, temporary, replace)
    except OSError as error:
        raise ArtifactError(
            f"The artifact '{target}' cannot be written ({error.strerror or error}); what was there is as it "
            "was. Allowed is a folder with room for it."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return whole


def refuse_occupied(target: Path, replace: bool) -> None:
    """Raise ArtifactError if something is at ``target`` that may not be replaced."""
    if not os.path.lexists(target):
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    if not _is_artifact(target):
        raise ArtifactError(f"'{target}' exists and is no artifact; allowed is another name.")
    if not replace:
        raise ArtifactError(f"'{target}' exists; allowed is another name, or --force to replace it.")
    foreign = [p.name for p in target.iterdir() if p.name not in (MANIFEST, *FILES)]
    if foreign:
        raise ArtifactError(
            f"'{target}' has other files than an artifact's ({foreign[0]!r}); allowed is another name."
        )


def _is_artifact(target: Path) -> bool:
    """Whether a folder has a manifest of ours, be the artifact damaged or not."""
    try:
        body = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(body, dict) and body.get("format") == FORMAT


def _take_the_place_of(target: Path, temporary: Path, replace: bool) -> None:
    """Rename a folder; what has come to ``target`` while it was written stays, unless it may be replaced."""
    try:
        os.rename(temporary, target)  # replaces an empty folder at most
        return
    except OSError:
        if not os.path.lexists(target):
            raise
    refuse_occupied(target, replace)
    aside = temporary_folder(target)
    try:
        os.rename(target, aside / _OLD)
        try:
            os.rename(temporary, target)
        except BaseException:
            os.rename(aside / _OLD, target)
            raise
    except BaseException:
        with contextlib.suppress(OSError):
            aside.rmdir()  # unless what was there is in it still, as it could not be put back
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _recover(target: Path) -> None:
    """Give its name back to an artifact whose replacement was killed between the two renames."""
    for folder in abandoned(target):
        if (folder / _OLD / MANIFEST).is_file() and not os.path.lexists(target):
            os.rename(folder / _OLD, target)


def _safetensors(arrays: Arrays) -> bytes:
    from safetensors.numpy import save

    return save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def _write(path: Path, contents: bytes) -> dict[str, Any]:
    with open(path, "wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(contents), "sha256": hashlib.sha256(contents).hexdigest()}


def read_artifact(folder: str | os.PathLike[str]) -> Artifact:
    """The artifact in ``folder``, checked.

    Raises:
        ArtifactError: it is missing, damaged, cut off, or of another version.
    """
    place = Path(folder)
    manifest = read_manifest(place)
    read = {name: _arrays(place, name, manifest.files[name]) for name in FILES if name in manifest.files}
    tensors = unpacked_tensors(manifest, read[WEIGHTS], place)
    return Artifact(manifest, tensors, read[CATALOGUE], read.get(INTERACTIONS, {}), place)


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest alone, checked; the other files are not read.

    Raises:
        ArtifactError: as :func:`read_artifact`.
    """
    place = Path(folder)
    try:
        if not place.is_dir():
            raise refusal(place, "it is a file" if place.exists() else "there is no such folder")
        with open(place / MANIFEST, "rb") as file:
            text = file.read(_LARGEST_MANIFEST + 1)
    except OSError as error:
        raise refusal(place, f"{MANIFEST} cannot be read ({error.strerror or error})") from None
    if len(text) > _LARGEST_MANIFEST:
        raise refusal(place, f"{MANIFEST} is larger than {_LARGEST_MANIFEST} bytes")
    try:
        body = json.loads(text)
        found, version = body.pop("format"), body.pop("version")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise refusal(place, f"{MANIFEST} is no manifest, or cut off") from None
    if found != FORMAT:
        raise refusal(place, f"{MANIFEST} is of another format")
    if version != VERSION or isinstance(version, bool):
        raise refusal(
            place, f"it has version {str(version)[:20]} of the format, and this package reads version {VERSION}"
        )
    try:
        told = body.pop("sha256")
        if _checksum({"format": found, "version": version, **body}) != told:
            raise refusal(place, f"{MANIFEST} is damaged: its checksum is not that of its contents")
        return _manifest(body)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OverflowError) as error:
        raise refusal(
            place, f"{MANIFEST} is not as this package writes it ({on_one_line(error)[:100]})"
        ) from None


def _manifest(body: dict[str, Any]) -> Manifest:
    """The manifest of a JSON object; ValueError, KeyError or TypeError if it is none."""
    kinds = {f.name: f.type for f in dataclasses.fields(Manifest)}
    if set(body) != set(kinds):
        raise ValueError("its keys are others")
    plain = {"str": str, "int": int, "bool": bool, "float": float}
    for name, kind in kinds.items():
        wanted = plain.get(str(kind), dict)
        if type(body[name]) is not wanted:
            raise TypeError(f"{name} is no {wanted.__name__}")
    tensors = {name: _tensor_info(entry) for name, entry in body["tensors"].items()}
    manifest = Manifest(**{**body, "tensors": tensors})
    if manifest.values not in VALUES or manifest.users < 1 or manifest.items < 1:
        raise ValueError("a value is out of range")
    if any(type(manifest.sizes.get(name)) is not int for name in _SIZES):
        raise ValueError("sizes are missing")
    if manifest.metrics and not _are_metrics(manifest.metrics):
        raise ValueError("its metrics are others")
    names = set(manifest.files)
    if not {WEIGHTS, CATALOGUE} <= names <= set(FILES):
        raise ValueError(f"files may be {', '.join(FILES)} only")
    for entry in manifest.files.values():
        if set(entry) != {"bytes", "sha256"} or type(entry["bytes"]) is not int or entry["bytes"] < 0:
            raise ValueError("a file is described otherwise")
    return manifest


def _are_metrics(metrics: dict[str, Any]) -> bool:
    """Numbers of the model as it was trained, by name, and those of the artifact under some of these names."""
    trained, own = metrics.get("trained"), metrics.get("artifact")
    if not isinstance(trained, dict) or not isinstance(own, dict) or not own.keys() <= trained.keys():
        return False
    return all(type(number) in (int, float) for number in (*trained.values(), *own.values()))


def _tensor_info(entry: Any) -> TensorInfo:
    shape, live, factor, exact = entry["shape"], entry["live"], entry["factor"], entry["exact"]
    if not all(type(size) is int and 0 <= size < 2**48 for size in shape) or (not shape and not exact):
        raise ValueError("a shape is out of range")
    if not (live is None or (type(live) is int and live >= 0)) or type(exact) is not bool:
        raise ValueError("a tensor is described otherwise")
    if type(factor) is not float or not math.isfinite(factor):
        raise ValueError("a factor is no number")
    if not exact and len(shape) < 2:
        raise ValueError("a matrix has no columns")
    return TensorInfo(tuple(shape), live, factor, exact)


def _arrays(place: Path, name: str, entry: Mapping[str, Any]) -> Arrays:
    """The arrays of a file whose size and checksum are right."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        size = os.stat(place / name).st_size
        contents = (place / name).read_bytes() if size == entry["bytes"] else b""
    except OSError as error:
        raise refusal(place, f"{name} cannot be read ({error.strerror or error})") from None
    if size != entry["bytes"] or len(contents) != size:
        raise refusal(place, f"{name} has {size} bytes, not the {entry['bytes']} that were written")
    if hashlib.sha256(contents).hexdigest() != entry["sha256"]:
        raise refusal(place, f"{name} is damaged: its checksum is not that of its contents")
    try:
        return load(contents)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise refusal(place, f"{name} cannot be decoded ({on_one_line(error)[:100]})") from None


def refusal(place: Path, reason: str) -> ArtifactError:
    """What to raise when an artifact cannot be used."""
    return ArtifactError(
        f"'{place}' cannot be served, because {reason}; allowed is an artifact as 'recbole-dsl export' has "
        "written it."
    )
