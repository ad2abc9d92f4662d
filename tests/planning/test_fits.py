# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of a run's memory, by hand; a real run's is in tests/runs/test_second_model.py."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.critics.engine_critic import ModelCritic
from stepalign_jax.parallel.mesh import make_mesh
from stepalign_jax.parallel.offload import Resident
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


def test_a_second_model_has_its_own_size():
    mesh = make_mesh(ParallelConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])

    def model(num_weights: int) -> Any:
        base = {"kernel": jnp.zeros(num_weights, jnp.float32)}
        return SimpleNamespace(base=base, mesh=mesh, weights=Resident(base))

    nothing: Any = None
    trained, second = model(10), model(6)
    critic = ModelCritic(second, nothing, nothing, nothing, (), "", None)
    state: Any = SimpleNamespace(
        trainable=trained.base, opt_state=[trained.base] * 2, teacher=jnp.zeros(4, jnp.bfloat16)
    )
    shares = fits.memory_shares(trained, state, critic)
    sizes = {name: share.bytes_per_device for name, share in shares.items()}
    assert sizes == {"base": 40, "trainable": 40, "optimizer": 80, "teacher": 8, "critic": 24}
    # Within what critics/opening.py puts around it.
    checked: Any = SimpleNamespace(inner=SimpleNamespace(inner=critic))
    assert fits.memory_shares(trained, state, checked)["critic"] == shares["critic"]
    own = ModelCritic(trained, nothing, nothing, nothing, (), "", None)
    assert fits.memory_shares(trained, state, own)["critic"].bytes_per_device == 0
