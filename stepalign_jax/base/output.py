# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Standard output and error, wherever they lead: any encoding, a closed pipe, nowhere."""

import io
import os
import select
import sys


def prepare_output() -> None:
    r"""Makes printing safe: what an encoding lacks becomes \u00e9, and no stream is missing.

    A closed descriptor is opened on the null device. Else the next file that is opened, which
    may be a checkpoint's, takes its number and with it the messages of C++ libraries.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def lost_output() -> OSError | None:
    """Returns why what was printed cannot be written, or None where all of it is.

    A stream that fails is turned to the null device: Python would try again at its end, and
    print a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            return error
    return None


def nobody_reads() -> bool:
    """Whether standard output or error is a pipe whose reader is gone."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
