# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""JAX's own flags, as far as they decide what is drawn and computed."""

import sys

import jax

# JAX's defaults. Each may come from a variable of its name in capitals, such as
# JAX_ENABLE_X64, and would then change what a run repeats, or end it with a traceback.
# JAX_DEFAULT_MATMUL_PRECISION is left to the user: on some accelerators it is the only way to
# whole float32 products.
PINNED = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_threefry_partitionable": True,
    "jax_default_prng_impl": "threefry2x32",
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_debug_key_reuse": False,  # an address is one on purpose, whoever asks
}


def pin_flags() -> None:
    """Sets the flags in `PINNED`; call it before any computation.

    Names on stderr those that the environment had set otherwise.
    """
    for name, value in PINNED.items():
        given = getattr(jax.config, name)
        if given != value:
            jax.config.update(name, value)
            print(
                f"note: {name.upper()} is {given}, which is not followed: runs are defined "
                f"with {value}",
                file=sys.stderr,
            )
