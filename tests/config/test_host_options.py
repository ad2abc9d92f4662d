# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The options by which a command learns which processes run it together."""

import pytest
from support.runs import refusal

from stepalign_jax import train
from stepalign_jax.base.watch import Hosts
from stepalign_jax.config.cli import parse_arguments
from stepalign_jax.config.hosts import HOST_OPTIONS, chosen_hosts

ALL = ("--coordinator=10.0.0.1:8476", "--num_processes=4", "--process_id=3")


def chosen(*argv: str) -> Hosts | None:
    return chosen_hosts(parse_arguments(argv, description="", example="", options=HOST_OPTIONS))


def test_three_options_or_none():
    assert chosen() is None
    assert chosen(*ALL) == Hosts("10.0.0.1:8476", 4, 3)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (ALL[:2], "go together"),
        (ALL[2:], "go together"),
        (("--coordinator=10.0.0.1", *ALL[1:]), "--coordinator is 10.0.0.1: give"),
        ((*ALL[:2], "--process_id=4"), "--process_id is 4, but 4 processes"),
        ((*ALL[:2], "--process_id=-1"), "--process_id is -1"),
        ((*ALL[:2], "--process_id=first"), "invalid int value"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_a_sentence(argv, words, monkeypatch, capsys):
    said = refusal(train.main, ["--config", "tiny", *argv], monkeypatch, capsys)
    assert words in said
