# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of a run's memory, by hand; a real run's is in tests/runs/test_second_model.py."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stepalign_jax.planning import fits
from stepalign_jax.planning.fits import Share, memory_json, memory_table


@pytest.mark.parametrize(
    ("ids", "words"),
    [([3], "device 3"), ([0, 1, 2, 3], "devices 0-3"), ([5, 4], "devices 4-5")],
)
def test_a_place_names_its_first_and_last_device(ids, words):
    mesh: Any = SimpleNamespace(devices=np.array([[SimpleNamespace(id=i) for i in ids]]))
    assert fits._place(mesh) == words


def test_the_table_to_the_letter():
    shares = {"base": Share(3 * 2**19, 1, "device 0"), "critic": Share(0, 2, "no weights")}
    assert memory_table(shares) == (
        "        each device  where\n"
        "base        1.5 MiB  device 0\n"
        "critic          0 B  no weights\n"
    )
    assert memory_json(shares) == {
        "base": {"bytes_per_device": 1_572_864, "devices": 1, "where": "device 0"},
        "critic": {"bytes_per_device": 0, "devices": 2, "where": "no weights"},
    }
