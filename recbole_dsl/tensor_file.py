"""One file of tensors and plain values that is written whole, checked whole, and runs no code when read.

It is a `safetensors <https://github.com/huggingface/safetensors>`_ file: a JSON header, then the tensors'
bytes. Its metadata hold the rest: ``tree``, the values as JSON with references to tensors, and ``sha256``
of everything else in the file. What is read is either what was written, or an error.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from .errors import CheckpointError, on_one_line
from .files import written_whole

CHECKPOINT: Final = ("recbole_dsl checkpoint", 2)
"""Kind and form of the checkpoints that training writes."""

TYPES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Types of tensors and the format's names for them."""

_LARGEST_HEADER: Final = 100_000_000
"""Bytes; the format's own bound."""

_BLOCK: Final = 1 << 22
"""Bytes that are copied and hashed together."""

_NOT_OURS: Final = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError)
"""What decoding raises for values that :func:`write_tensor_file` does not write; recursion too deep is one."""

_TENSOR, _TUPLE, _PAIRS, _SPARSE, _ROWS = "$tensor", "$tuple", "$pairs", "$sparse", "$rows"


def write_tensor_file(path: str | os.PathLike[str], kind: str, schema: int, tree: Any) -> None:
    """Write ``tree`` to ``path``, whole or not at all.

    Tensors may be anywhere, strided or sparse COO; one that occurs several times is stored once. Beside
    them a block of memory is needed.

    Args:
        kind, schema: what sort of file it is, and in which form; :func:`read_tensor_file` asks for them.
        tree: made of dicts, lists, tuples, tensors, strings, numbers, booleans and None. Keys of dicts are
            strings or numbers.

    Raises:
        TypeError: something else is in the tree.
        OSError: the file cannot be written; an older one is as it was.
    """
    tensors: dict[str, Tensor] = {}
    encoded = json.dumps(_encode(tree, tensors, {}), separators=(",", ":"))
    header: dict[str, Any] = {
        "__metadata__": {"kind": kind, "schema": str(schema), "sha256": "0" * 64, "tree": encoded}
    }
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256(text)
    with written_whole(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors.values():
            for block in _blocks_of(tensor):
                digest.update(block)
                file.write(block)
        file.seek(8)
        file.write(text.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest.hexdigest().encode(), 1))


def _blocks_of(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor in pieces."""
    flat = tensor.detach().reshape(-1)
    step = max(1, _BLOCK // flat.element_size())
    for start in range(0, flat.numel(), step):
        piece = flat[start : start + step].cpu().contiguous()
        piece = piece.as_strided(piece.shape, (1,))  # a single element may have any stride
        block: Any = piece.view(torch.uint8).numpy()
        yield memoryview(block).cast("B")


def _encode(value: Any, tensors: dict[str, Tensor], known: dict[tuple, str]) -> Any:
    """``value`` as JSON; its tensors are collected under names."""
    if isinstance(value, Tensor):
        return _encode_tensor(value.detach(), tensors, known)
    if isinstance(value, Mapping):
        pairs = [(key, _encode(item, tensors, known)) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in pairs):
            return dict(pairs)
        return {_PAIRS: [[_encode(key, tensors, known), item] for key, item in pairs]}
    if isinstance(value, list | tuple):
        items = [_encode(item, tensors, known) for item in value]
        return items if isinstance(value, list) else {_TUPLE: items}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be in a file of tensors and plain values")


def _encode_tensor(tensor: Tensor, tensors: dict[str, Tensor], known: dict[tuple, str]) -> Any:
    if tensor.layout == torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
        indices, values = (_encode_tensor(part, tensors, known) for part in parts)
        return {_SPARSE: [indices, values, list(tensor.shape), tensor.is_coalesced()]}
    if tensor.layout == torch.sparse_csr:
        rows = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
        return {_ROWS: [*(_encode_tensor(part, tensors, known) for part in rows), list(tensor.shape)]}
    if tensor.layout != torch.strided or tensor.dtype not in TYPES:
        raise TypeError(f"a tensor of type {tensor.dtype}, {tensor.layout} cannot be in a file")
    key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
    if tensor.numel() == 0 or key not in known:
        known[key] = f"t{len(tensors)}"
        tensors[known[key]] = tensor
    return {_TENSOR: known[key]}


def read_tensor_file(path: str | os.PathLike[str], kind: str, schema: int) -> Any:
    """What :func:`write_tensor_file` wrote, with its tensors on the CPU.

    Nothing in the file is run, and nothing of it is used before its checksum is found right.

    Raises:
        CheckpointError: the file is missing, of another kind or form, or not as it was written.
    """
    from safetensors import SafetensorError, safe_open

    with _readable(path) as file:
        text, metadata = _header(file, path, kind, schema)
        digest = hashlib.sha256(text.replace(metadata["sha256"].encode(), b"0" * 64, 1))
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != metadata["sha256"]:
        raise _refusal(path, "it is damaged: its checksum is not that of its contents")
    try:
        with safe_open(os.fspath(path), framework="pt") as opened:
            # As copies: else the file is mapped while one of them lives, and cannot be replaced on Windows.
            return _decode(json.loads(metadata["tree"]), lambda name: opened.get_tensor(name).clone())
    except (SafetensorError, OSError, *_NOT_OURS) as error:
        raise _refusal(path, f"it cannot be decoded ({on_one_line(error)[:150]})") from None


def read_tree(path: str | os.PathLike[str], kind: str, schema: int) -> Any:
    """The same with None in place of every tensor, from the header alone and without its check."""
    with _readable(path) as file:
        _, metadata = _header(file, path, kind, schema)
    try:
        return _decode(json.loads(metadata["tree"]), lambda name: None)
    except _NOT_OURS as error:
        raise _refusal(path, f"it cannot be decoded ({on_one_line(error)[:150]})") from None


def is_tensor_file(path: Any) -> bool:
    """Whether a file begins like one of ours, of whatever kind; False if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return b'"__metadata__":{"kind":"recbole_dsl' in file.read(64)
    except (OSError, TypeError):
        return False


def _decode(value: Any, tensor: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensor) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensor(value[_TENSOR])
    if _TUPLE in value:
        return tuple(_decode(value[_TUPLE], tensor))
    if _PAIRS in value:
        return {_decode(key, tensor): _decode(item, tensor) for key, item in value[_PAIRS]}
    if _SPARSE in value:
        indices, values, shape, coalesced = value[_SPARSE]
        parts = _decode_parts([indices, values], tensor)
        return parts and torch.sparse_coo_tensor(
            parts[0], parts[1], shape, is_coalesced=coalesced, check_invariants=True
        )
    if _ROWS in value:
        pointers, columns, values, shape = value[_ROWS]
        parts = _decode_parts([pointers, columns, values], tensor)
        return parts and torch.sparse_csr_tensor(parts[0], parts[1], parts[2], shape, check_invariants=True)
    return {key: _decode(item, tensor) for key, item in value.items()}


def _decode_parts(parts: list[Any], tensor: Any) -> list[Any] | None:
    """The tensors that a sparse one is made of; None where tensors are not read."""
    decoded = [_decode(part, tensor) for part in parts]
    return None if any(part is None for part in decoded) else decoded


def _readable(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise _refusal(path, error.strerror or str(error)) from None


def _header(
    file: BinaryIO, path: str | os.PathLike[str], kind: str, schema: int
) -> tuple[bytes, dict[str, str]]:
    """The header's bytes and its metadata, of the right kind and form."""
    start = file.read(8)
    if not start:
        raise _refusal(path, "it is empty")
    size = int.from_bytes(start, "little")
    if size > _LARGEST_HEADER and (start[:2] == b"PK" or start[:1] == b"\x80"):
        raise _refusal(
            path,
            "it is a pickle, as RecBole and torch.save write them, which could run any code when read",
        )
    text = file.read(size) if size <= _LARGEST_HEADER else b""
    foreign = _refusal(path, "it is no file of recbole_dsl, or cut off")
    if len(text) < size or size < 2:
        raise foreign
    try:
        metadata = json.loads(text)["__metadata__"]
        found, form, digest = metadata["kind"], int(metadata["schema"]), metadata["sha256"]
        plain = all(isinstance(part, str) for part in (found, digest, metadata["tree"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise foreign from None
    if not plain or len(digest) != 64:
        raise foreign
    if found != kind:
        raise _refusal(path, f"it is a {found}")
    if form != schema:
        raise _refusal(
            path, f"it has form {form}, of another version of this package, which reads form {schema}"
        )
    return text, metadata


def _refusal(path: str | os.PathLike[str], reason: str) -> CheckpointError:
    return CheckpointError(
        f"'{Path(path)}' cannot be read, because {reason[:1].lower() + reason[1:]}; "
        "allowed is a file as this package has written it."
    )
