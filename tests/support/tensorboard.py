# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What lies in TensorBoard's files, read without TensorBoard."""

import pathlib
import struct

from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]


def read_events(directory: pathlib.Path) -> list[Event]:
    """Returns the TensorBoard events; a record is length, 4 bytes, event, 4 bytes."""
    events = []
    for path in sorted(directory.iterdir()):
        content, start = path.read_bytes(), 0
        while start < len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            events.append(Event.FromString(content[start + 12 : start + 12 + length]))
            start += 16 + length
    return events
