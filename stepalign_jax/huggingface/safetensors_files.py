# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""safetensors files: which file holds which tensor, and reading a part of one.

The headers are parsed here and the bytes read with plain reads, not mapped: then the memory
a process shows is the memory it holds, and a process reads only the part it needs.
"""

import functools
import json
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from stepalign_jax.base.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# Name in the files -> dtype, for those that can be loaded.
DTYPES = {
    "F32": jnp.dtype("float32"),
    "BF16": jnp.dtype("bfloat16"),
    "F16": jnp.dtype("float16"),
}

_MAX_HEADER_BYTES = 100 << 20  # the format's own limit
_CHUNK_BYTES = 1 << 19  # so that a chunk to be turned stays in the processor's cache
_MIN_CHUNK_ROWS = 64  # fewer would be written in pieces below a cache line
_NUM_READERS = 8
_UNREADABLE = {
    "*.gguf": "GGUF files, which are quantised for another engine",
    "pytorch_model*.bin": "PyTorch pickles, which can run code when they are opened",
    "*.pt": "PyTorch pickles, which can run code when they are opened",
    "*.pth": "PyTorch pickles, which can run code when they are opened",
    "*.ckpt": "PyTorch pickles, which can run code when they are opened",
}


class TensorEntry(NamedTuple):
    """Where the bytes of one tensor are, from the header of its file.

    Attributes:
      name: as in the file.
      file: the file that holds it.
      dtype: as the format spells it, a key of DTYPES where it can be loaded.
      shape: as in the file; a Linear's weight is [out, in] there.
      offset: of its first byte, from the start of the file.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def __str__(self) -> str:
        return f"{self.name} in {self.file}"


def tensor_entries(directory: Path) -> dict[str, TensorEntry]:
    """Tensor name -> entry, from the headers of all files, held against the index.

    Raises:
      UserError: the directory holds no safetensors, a file is damaged or missing, or the
        index and the files disagree.
    """
    if (directory / SINGLE).is_file():
        return {entry.name: entry for entry in _read_header(directory / SINGLE)}
    if not (directory / INDEX).is_file():
        raise UserError(_no_safetensors(directory))
    index = _weight_map(directory / INDEX)
    files = sorted(set(index.values()))
    absent = [file for file in files if not (directory / file).is_file()]
    if absent:
        raise UserError(f"{directory} lacks {some(absent)}, named in {INDEX}: fetch it again.")
    entries = [entry for file in files for entry in _read_header(directory / file)]
    found = {(entry.name, entry.file.name) for entry in entries}
    astray = {name for name, _ in found ^ set(index.items())}
    if astray:
        raise UserError(
            f"{directory / INDEX} and the files that it names disagree on where "
            f"{some(astray)} is: fetch the checkpoint again."
        )
    return {entry.name: entry for entry in entries}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: model.path must hold a Hugging Face checkpoint."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): fetch it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: fetch it again.")
    return content


def _weight_map(path: Path) -> dict[str, str]:
    index = read_json(path).get("weight_map")
    index = index if isinstance(index, dict) else {}
    beside = [isinstance(file, str) and Path(file).name == file for file in index.values()]
    if not index or not all(beside):
        raise UserError(
            f"{path} has no weight_map from tensors to files beside it: fetch it again."
        )
    return index


def _no_safetensors(directory: Path) -> str:
    for pattern, what in _UNREADABLE.items():
        if found := [path.name for path in directory.glob(pattern)]:
            return (
                f"{directory} holds {some(found)} but no safetensors: {what}, are not read, so "
                f"fetch or convert the checkpoint to {SINGLE}."
            )
    return f"{directory} has neither {SINGLE} nor {INDEX}: fetch the weights as safetensors."


def _read_header(path: Path) -> list[TensorEntry]:
    try:
        with path.open("rb") as file:
            return _parse_header(path, os.fstat(file.fileno()).st_size, file)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again.") from error


def _parse_header(path: Path, size: int, file: Any) -> list[TensorEntry]:
    start = file.read(8)
    if start == b"version ":
        raise UserError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull`.")
    length = int.from_bytes(start, "little")
    if len(start) < 8 or 8 + length > size or length > _MAX_HEADER_BYTES:
        raise UserError(f"{path} is cut off or damaged in its header: fetch it again.")
    try:
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries, spans = [], []
        for name, value in header.items():
            shape, (begin, end) = map(int, value["shape"]), map(int, value["data_offsets"])
            entries.append(
                TensorEntry(name, path, value["dtype"], tuple(shape), 8 + length + begin)
            )
            spans.append((begin, end))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} has a damaged header ({error!r}): fetch it again.") from error
    _check_spans(path, entries, spans, size - 8 - length)
    return entries


def _check_spans(
    path: Path, entries: list[TensorEntry], spans: list[tuple[int, int]], num_bytes: int
) -> None:
    """The tensors must fill the data without a hole, each with the bytes its shape takes."""
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise UserError(f"{path} has a header with holes or overlaps: fetch it again.")
        position = end
    if position != num_bytes:
        raise UserError(
            f"{path} holds {num_bytes} bytes of tensors where its header promises {position}: "
            "it is cut off or damaged, fetch it again."
        )
    for entry, (begin, end) in zip(entries, spans, strict=True):
        dtype = DTYPES.get(entry.dtype)
        if dtype and end - begin != math.prod(entry.shape) * dtype.itemsize:
            raise UserError(f"{entry} has bytes that do not match its shape: fetch it again.")


def read_tensor(
    entry: TensorEntry, box: tuple[slice, ...], *, dtype: Any, transpose: bool
) -> np.ndarray:
    """The part `box` of a tensor in `dtype`, in a new array; transposed where asked.

    It is read, checked, cast and turned a few rows at a time, so beside the result only
    some rows per thread are in memory.

    Args:
      entry: the tensor, of one or two axes and a dtype in DTYPES.
      box: a slice with bounds per axis of the file's shape.
      dtype: of the result.
      transpose: whether the result is [in, out] where the file has [out, in].

    Raises:
      UserError: a value is NaN or infinite, or too large for `dtype`, or the file is cut off.
    """
    rows, columns = (*box, slice(0, 1))[:2]
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    part = np.empty(shape[::-1] if transpose else shape, dtype)
    by_row = part.T if transpose else part
    step = max(_CHUNK_BYTES // (shape[1] * part.itemsize), _MIN_CHUNK_ROWS)
    with entry.file.open("rb") as file, ThreadPoolExecutor(_num_readers()) as pool:
        read = functools.partial(_read_rows, file.fileno(), entry, columns)

        def convert(start: int) -> None:
            stop = min(start + step, rows.stop)
            by_row[start - rows.start : stop - rows.start] = _cast(
                entry, read(start, stop), part.dtype
            )

        # A list, so that an error in a thread is raised here.
        list(pool.map(convert, range(rows.start, rows.stop, step)))
    return part.reshape([cut.stop - cut.start for cut in box]) if len(box) == 1 else part


def _num_readers() -> int:
    return min(_NUM_READERS, os.cpu_count() or 1)


def _read_rows(
    file: int, entry: TensorEntry, columns: slice, start: int, stop: int
) -> np.ndarray:
    """[stop - start, width of `columns`] in the file's dtype; whole rows in one read."""
    dtype, width = DTYPES[entry.dtype], math.prod(entry.shape[1:])
    rows = np.empty((stop - start, columns.stop - columns.start), dtype)
    whole = rows.shape[1] == width
    for i, run in enumerate([rows.reshape(-1)] if whole else rows):
        position = (start + i) * width + columns.start
        wanted = run.view(np.uint8).data
        offset = entry.offset + position * dtype.itemsize
        while wanted:
            count = os.preadv(file, [wanted], offset)
            if not count:
                raise UserError(f"{entry} is cut off: fetch the file again.")
            wanted, offset = wanted[count:], offset + count
    return rows


def _cast(entry: TensorEntry, rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # told of by name below
        cast = rows.astype(dtype, copy=False)
    if _is_finite(cast):
        return cast
    if _is_finite(rows):
        raise UserError(
            f"{entry} has values beyond the range of {dtype.name}: set model.compute_dtype to "
            "bfloat16 or float32."
        )
    raise UserError(
        f"{entry} has values that are NaN or infinite: the checkpoint is damaged or its "
        "training diverged, so fetch it again or take another."
    )


def _is_finite(values: np.ndarray) -> bool:
    if values.dtype.itemsize != 2:
        return bool(np.isfinite(values).all())
    # By its bits, 3 times as fast: an exponent of ones means NaN or infinite.
    exponent = np.uint16(0x7C00 if values.dtype == np.float16 else 0x7F80)
    return not ((values.view(np.uint16) & exponent) == exponent).any()


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 4} more" if len(ordered) > 4 else ""
    return ", ".join(ordered[:4]) + more
