# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Imports go to the same or a lower layer. The order is CONTRIBUTING.md's."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "stepalign_jax"
LAYERS = [
    "base",
    "config",
    "parallel",
    "model",
    "sampling",
    "objectives",
    "training",
    "huggingface",
    "problems",
    "grading",
    "feedback",
    "configs",
    "critics",
    "evaluation",
    "tiny",
    "runs",
    "exporting",
    "planning",
    "preparing",
    "analysis",
    "report",
]
COMMANDS = len(LAYERS)


def layer(module: str) -> int:
    """Layer of a dotted module; the modules beside the packages are commands."""
    name = [*module.split("."), ""][1]
    return LAYERS.index(name) if name in LAYERS else COMMANDS


def upward_imports(module: str, source: str) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "stepalign_jax":
            found += [f"stepalign_jax.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            found.append(node.module or "")
    ours = [name for name in found if name.split(".")[0] == "stepalign_jax"]
    return [name for name in ours if layer(name) > layer(module)]


def test_every_import_goes_to_the_same_or_a_lower_layer() -> None:
    upward = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        upward[module] = upward_imports(module, path.read_text(encoding="utf-8"))
    assert len(upward) > len(LAYERS)
    assert {module: names for module, names in upward.items() if names} == {}


def test_every_package_has_a_layer() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == set(LAYERS)


@pytest.mark.parametrize(
    "source",
    [
        "import stepalign_jax.report.plots",
        "from stepalign_jax import runs",
        "from stepalign_jax.report.plots import write",
        "def f():\n    from stepalign_jax.train import main",
    ],
)
def test_an_upward_import_is_found(source: str) -> None:
    assert upward_imports("stepalign_jax.model.qwen3", source)
    assert not upward_imports("stepalign_jax.train", source)
