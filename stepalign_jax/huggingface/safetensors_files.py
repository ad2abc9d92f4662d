# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""safetensors files: which file holds which tensor, and reading a part of one.

The library reads headers and bytes. It maps a file into memory, and pages that were read stay
in the process's memory until the file is closed. So a file is opened for each block of rows:
that takes 0.15 ms, and only the blocks at work are in memory beside the result.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# Name in the files -> dtype, for those that can be loaded.
DTYPES = {
    "F32": jnp.dtype("float32"),
    "BF16": jnp.dtype("bfloat16"),
    "F16": jnp.dtype("float16"),
}

_BLOCK_BYTES = 1 << 19  # of the result
_MIN_BLOCK_ROWS = 64  # fewer rows would be transposed in pieces below a cache line
_NUM_READERS = 8
_PICKLES = "PyTorch pickles, which can run code when they are opened"
_UNREADABLE = {
    "*.gguf": "GGUF files, which are quantised for another engine",
    "pytorch_model*.bin": _PICKLES,
    "*.pt": _PICKLES,
    "*.pth": _PICKLES,
    "*.ckpt": _PICKLES,
}


class TensorEntry(NamedTuple):
    """One tensor, from the header of its file.

    Attributes:
      name: as in the file.
      file: the file that holds it.
      dtype: as the format spells it, a key of DTYPES where it can be loaded.
      shape: as in the file; a Linear's weight is [out, in] there.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} in {self.file}"


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Yields the library's open file, and turns its errors into one sentence.

    Raises:
      UserError: the file is missing, cut off or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is cut off or damaged ({error}): fetch it again.") from error


def read_raw_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Size and content of a file's header: by tensor, where its bytes lie behind the header.

    Raises:
      UserError: the file is missing, cut off or damaged.
    """
    with open_safetensors(path), path.open("rb") as file:  # the library checks the header
        num_bytes = int.from_bytes(file.read(8), "little")
        return num_bytes, json.loads(file.read(num_bytes))


def tensor_entries(directory: Path) -> dict[str, TensorEntry]:
    """Tensor name -> entry, from the headers of all files, compared with the index.

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
    # By (tensor, file), so that a tensor that two files hold is found too.
    found = {(entry.name, entry.file.name) for entry in entries}
    astray = {name for name, _ in found ^ set(index.items())}
    if astray:
        raise UserError(
            f"{directory / INDEX} and the files that it names disagree on where "
            f"{some(astray)} is: fetch the checkpoint again."
        )
    return {entry.name: entry for entry in entries}


def _read_header(path: Path) -> list[TensorEntry]:
    with open_safetensors(path) as file:
        views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return [
            TensorEntry(name, path, view.get_dtype(), tuple(view.get_shape()))
            for name, view in views.items()
        ]


def _weight_map(path: Path) -> dict[str, str]:
    index = read_json_object(path).get("weight_map")
    index = index if isinstance(index, dict) else {}
    # A file elsewhere could be any file of the user's.
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


def read_tensor(
    entry: TensorEntry, box: tuple[slice, ...], *, dtype: Any, transpose: bool
) -> np.ndarray:
    """The part `box` of a tensor in `dtype`, in a new array; transposed where asked.

    Threads read, check, cast and transpose blocks of rows. Beside the result only one block
    per thread is in memory.

    Args:
      entry: the tensor, of one or two axes and a dtype in DTYPES.
      box: a slice with bounds per axis of the file's shape.
      dtype: of the result.
      transpose: whether the result is [in, out] where the file has [out, in].

    Raises:
      UserError: a value is NaN or infinite, or too large for `dtype`, or the file is cut off.
    """
    shape = tuple(cut.stop - cut.start for cut in box)
    part = np.empty(shape[::-1] if transpose else shape, dtype)
    by_row = part.T if transpose else part
    rows, columns = box[0], box[1:]
    step = max(_BLOCK_BYTES * shape[0] // max(part.nbytes, 1), _MIN_BLOCK_ROWS)

    def convert(start: int) -> None:
        block = slice(start, min(start + step, rows.stop))
        with open_safetensors(entry.file) as file:
            values = file.get_slice(entry.name)[(block, *columns)]
        at = slice(block.start - rows.start, block.stop - rows.start)
        by_row[at] = _cast(entry, values, part.dtype)

    with ThreadPoolExecutor(min(_NUM_READERS, os.cpu_count() or 1)) as pool:
        # A list, so that an error in a thread is raised here.
        list(pool.map(convert, range(rows.start, rows.stop, step)))
    return part


def _cast(entry: TensorEntry, rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # refused by name below
        cast = rows.astype(dtype, copy=False)
    if _is_finite(cast):
        return cast
    if _is_finite(rows):
        raise UserError(
            f"{entry} has values beyond the range of {dtype.name}: compute in bfloat16 or "
            "float32."
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
