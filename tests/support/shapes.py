# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Modules whose signatures are checked against the arrays that the tests hand over.

It is not the whole package: on a `flax.struct` dataclass the check refuses what JAX's
transformations put into the fields of a pytree. The modules named here define none.
"""

CHECKED = (
    "stepalign_jax.objectives",
    "stepalign_jax.sampling.decode",
    "stepalign_jax.sampling.draw",
    "stepalign_jax.training.scoring",
    "stepalign_jax.training.step",
)
