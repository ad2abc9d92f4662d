# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The paper's RefSol: the teacher sees the reference solution in place of a critique.

    python -m stepalign_jax.train --config refsol

Everything else is configs/stepalign.py, as reported of the paper: only the context differs.
"""

from dataclasses import replace

from stepalign_jax.config.schema import Config
from stepalign_jax.configs import stepalign


def get_config(variant: str) -> Config:
    """Returns stepalign's config, variants included, under the other condition."""
    base = stepalign.get_config(variant)
    return replace(base, name=base.name.replace("stepalign", "refsol"), condition="refsol")
