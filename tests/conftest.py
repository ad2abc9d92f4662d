# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One setting for all tests: CPU, no network, no silent broadcasting, no chance."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu looks for a cloud's machine otherwise
# Nobody opens a TPU here: the compiler may be loaded by this process and its children.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A compile cache would hide that something compiles twice.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

# A deadline would measure compilation; a test that fails by chance cannot be trusted.
hypothesis.settings.register_profile("stepalign", deadline=None, derandomize=True)
hypothesis.settings.load_profile("stepalign")
