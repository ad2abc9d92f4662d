# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0

# Importing the room registers all critics' sections.
from stepalign_jax.config import critics  # noqa: F401
