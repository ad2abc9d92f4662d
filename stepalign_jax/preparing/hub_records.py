# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Records of a data set on the Hub, streamed by the package `datasets`."""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json_object, write_json
from stepalign_jax.base.progress import waiting
from stepalign_jax.preparing.records import (
    BUFFER,
    RECORDS_PER_BATCH,
    Record,
    Records,
    import_data_package,
)
from stepalign_jax.preparing.rows import BadRow


def open_hub(name: str, *, subset: str | None, split: str, revision: str | None) -> Records:
    """Opens a data set for streaming; no row is read.

    Args:
      name: its id on the Hub, or a local directory with the layout of one.
      subset: the data set's configuration; None: its only one.
      split: one split.
      revision: a commit; None: the newest.

    Raises:
      UserError: it cannot be opened, or the package is missing.
    """
    datasets = import_data_package("datasets")
    try:
        with waiting(f"opening {name}"):
            builder = datasets.load_dataset_builder(name, subset, revision=revision)
            _bound_memory(builder.config)
            found = builder.as_streaming_dataset(split=split)
    except Exception as error:  # of the Hub's client and of many formats; all mean the same
        raise UserError(
            f"cannot open {name} (split {split}) on the Hub ({_words(error)}): {_instead(name)}"
        ) from error
    number = found.num_shards
    parts = [f"{name} {split} {index + 1}/{number}" for index in range(number)]

    def read(part: str, columns: Sequence[str]) -> Iterator[tuple[int, Record] | BadRow]:
        shard = found.shard(num_shards=number, index=parts.index(part))
        return _read_shard(shard, part)

    details = {"path": name, "subset": subset, "split": split, "revision": revision}
    return Records(parts, read, details, "")


def _bound_memory(config: Any) -> None:
    """Makes Parquet be read in small pieces: by default whole row groups wait in memory."""
    if hasattr(config, "fragment_scan_options"):
        config.batch_size = RECORDS_PER_BATCH
        config.fragment_scan_options = import_data_package(
            "pyarrow.dataset"
        ).ParquetFragmentScanOptions(
            use_buffered_stream=True, buffer_size=BUFFER, pre_buffer=False
        )


def pinned_revision(name: str, work: Path) -> str:
    """Returns the commit that a stopped process began with, or else the newest.

    Args:
      name: of a data set on the Hub.
      work: what is kept of the command until it is done.

    Raises:
      UserError: the Hub cannot be reached, or has no such data set.
    """
    path = work / "revision.json"
    if path.exists() and (kept := read_json_object(path)).get("name") == name:
        return kept["revision"]
    revision = newest_revision(name)
    write_json(path, {"name": name, "revision": revision})
    return revision


def newest_revision(name: str) -> str:
    """Returns the commit that the Hub has as the newest of a data set.

    Raises:
      UserError: the Hub cannot be reached, or has no such data set.
    """
    hub = importlib.import_module("huggingface_hub")
    try:
        return hub.HfApi().dataset_info(name).sha
    except Exception as error:  # the client's errors share no base
        raise UserError(
            f"cannot reach {name} on the Hub ({_words(error)}): {_instead(name)}"
        ) from error


def _read_shard(shard: Any, part: str) -> Iterator[tuple[int, Record] | BadRow]:
    """A shard's records.

    What is wrong with the shard's content ends it with a BadRow. A connection that fails may
    not: the shard would lose rows that the next attempt has.
    """
    done, records = 0, iter(shard)
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except (OSError, ValueError) as error:
            if not _is_content(error):
                raise _stopped(part, done, error) from error
            yield BadRow(part, done + 1, "", f"cannot be read from here on: {_words(error)}")
            return
        except Exception as error:
            raise _stopped(part, done, error) from error
        done += 1
        yield done, record


def _instead(name: str) -> str:
    return (
        f"check names and network, or download it (`hf download {name} --repo-type dataset "
        "--local-dir DIRECTORY`) and give that directory as --from"
    )


def _is_content(error: Exception) -> bool:
    """Whether the content is at fault: Arrow's errors, and a schema that does not fit."""
    # Arrow says OSError itself, without a number; what a connection raises is more particular.
    return isinstance(error, ValueError) or (type(error) is OSError and error.errno is None)


def _stopped(part: str, done: int, error: Exception) -> UserError:
    return UserError(
        f"{part} stopped behind row {done} ({_words(error)}): the same command goes on there"
    )


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]
