# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The paper's RefSol: the teacher sees the reference solution in place of a critique.

    python -m stepalign_jax.train --config configs/refsol.py

Everything else is configs/stepalign.py, as reported of the paper: only the context differs.
"""

from dataclasses import replace

import stepalign

from stepalign_jax.config.schema import Config


def get_config(variant: str) -> Config:
    """Returns stepalign's config, variants included, under the other condition."""
    base = stepalign.get_config(variant)
    return replace(base, name=base.name.replace("stepalign", "refsol"), condition="refsol")
