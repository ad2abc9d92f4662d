# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
