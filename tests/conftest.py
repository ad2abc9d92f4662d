# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One setting for all tests: CPU, no network, checked shapes, no broadcasting, no chance."""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu looks for a cloud's machine otherwise
# Nobody opens a TPU here: the compiler may be loaded by this process and its children.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Programs are compiled once for all tests and all later runs. JAX reports one that it takes
# from there as a compilation too, so a test that counts them misses none.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    Path(__file__).parents[1] / ".pytest_cache" / "xla"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
# A bound makes JAX lock the directory, which tests in several processes share.
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2 * 2**30)

# LLVM at -O0: half of the suite's CPU time was spent on code that runs for a moment. HLO passes
# stay. `make test-slow` runs long enough to want them, and sets 0.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import jaxtyping
import pytest
from support.shapes import CHECKED

jax.config.update("jax_numpy_rank_promotion", "raise")
# From here on these modules are imported with each function's arguments and result checked.
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")

# A deadline would measure compilation; a test that fails by chance cannot be trusted.
hypothesis.settings.register_profile("stepalign", deadline=None, derandomize=True)
hypothesis.settings.load_profile("stepalign")


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that a test makes end without figures, which take as long as their training.

    A run that a fixture makes for a module has them.
    """
    train = sys.modules.get("stepalign_jax.train")
    if train is not None:
        monkeypatch.setattr(train, "plot_run", lambda _run: None)
        monkeypatch.setattr(train, "run_images", lambda _run: {})
