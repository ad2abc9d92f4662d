# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Which version of this package made a file."""

import importlib.metadata


def package_version() -> str:
    """Returns the installed version, or "not installed"."""
    try:
        return importlib.metadata.version("stepalign_jax")
    except importlib.metadata.PackageNotFoundError:  # run from its files
        return "not installed"
