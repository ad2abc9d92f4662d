# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Who writes critiques. Importing the room registers the critics that ship with the package."""

from stepalign_jax.critics import endpoint, engine_critic, oracle, replay  # noqa: F401
