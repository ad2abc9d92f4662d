# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The stub of reasoning_gym, for this process and for the workers that it starts."""

import sys
from pathlib import Path

import pytest

STUB = Path(__file__).parent / "stub_gym"


@pytest.fixture
def stub_gym(monkeypatch):
    """Puts the stub in the place of the package."""
    monkeypatch.delitem(sys.modules, "reasoning_gym", raising=False)
    monkeypatch.syspath_prepend(str(STUB))
    monkeypatch.setenv("PYTHONPATH", str(STUB))
    yield
    sys.modules.pop("reasoning_gym", None)
