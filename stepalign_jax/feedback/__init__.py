# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0

# Importing the room registers all conditions.
from stepalign_jax.feedback import baselines, controls  # noqa: F401
