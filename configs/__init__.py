# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The configs that ship: `--config tiny`, or `from stepalign_jax.configs import tiny`.

They are read and edited in `configs/` at the top of the repository, to which
`stepalign_jax/configs` is a link; an installed package has them as files of its own.
"""
