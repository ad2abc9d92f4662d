# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What the notebooks are before anybody runs them."""

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from support.runs import ROOT

from stepalign_jax.config.load import load_config

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [ROOT / "docs" / "notebooks.md"]
# What a kernel may be asked for: the rest is in the environment beside it.
OF_THE_KERNEL = {*sys.stdlib_module_names, "IPython", "matplotlib", "beside", "pictures"}


def repository() -> str:
    """The one place where the address of the repository stands."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["urls"]["Repository"]


def cells_of(path: Path, kind: str) -> list[str]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == kind]
    return ["".join(cell["source"]) for cell in cells]


def test_there_are_four_notebooks():
    names = [path.stem for path in NOTEBOOKS]
    assert names == ["anatomy", "quickstart", "read_a_run", "small_model"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_output(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and all(c["outputs"] == [] and c["execution_count"] is None for c in code)
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    assert path.stat().st_size < 20_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_begins_with_its_badge_and_the_same_two_cells(path):
    owner_and_name = repository().removeprefix("https://github.com/")
    badge = f"https://colab.research.google.com/github/{owner_and_name}/blob/main/notebooks/"
    mend = f"the address is that of pyproject.toml: put {repository()} there"
    assert f"]({badge}{path.name})" in cells_of(path, "markdown")[0], mend
    clone, install = cells_of(path, "code")[:2]
    assert f'\nREPOSITORY = "{repository()}"\n' in clone, mend
    assert [clone, install] == cells_of(NOTEBOOKS[0], "code")[:2]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_page_has_a_badge_of_each_notebook(page):
    owner_and_name = repository().removeprefix("https://github.com/")
    links = re.findall(
        r"\(https://colab\.research\.google\.com/github/([^)]*)\)", page.read_text()
    )
    wanted = [f"{owner_and_name}/blob/main/notebooks/{path.name}" for path in NOTEBOOKS]
    assert sorted(links) == wanted


@pytest.mark.parametrize(
    "path", [*NOTEBOOKS, *sorted((ROOT / "notebooks").glob("*.py"))], ids=lambda path: path.name
)
def test_the_kernel_is_asked_for_what_every_kernel_has(path):
    sources = cells_of(path, "code") if path.suffix == ".ipynb" else [path.read_text()]
    found = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    assert found and found <= OF_THE_KERNEL


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_values_that_a_notebook_gives_go_together(path):
    """A renamed key is found here, and not after minutes in a notebook."""
    given = r'"(--[a-z_]+\.[a-z_]+=[^"{]+)"'
    overrides = [o for source in cells_of(path, "code") for o in re.findall(given, source)]
    assert len(overrides) >= 4 or path.stem == "quickstart"
    on_the_miniature = [o for o in overrides if "compute_dtype" not in o]  # that is of a T4
    assert load_config("tiny", on_the_miniature).train.num_steps <= 60
