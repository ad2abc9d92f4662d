# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
#
# `make demo` and `make test` need python3 (3.11 or later) and make; each first
# makes .venv and installs into it, once.

PYTHON ?= python3
BIN := .venv/bin
SLOW := .venv-slow/bin
SLOW_TESTS := tests
TINY := stepalign_jax/tiny/checkpoint

.PHONY: demo test test-long check format test-slow test-newest peers pretrain clean

demo: .venv/installed
	$(BIN)/python -m stepalign_jax.train --config configs/tiny.py

test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=20

# Whole runs, the pages of docs/ as programs, several processes and devices: CI runs both.
test-long: .venv/installed-test
	$(BIN)/python -m pytest -m long -n 2 --dist worksteal --durations=20

check: .venv/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: .venv/installed-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The page keeps the tests' own words, a section per file, so that it never says more than was
# run. Some alone: `make test-slow SLOW_TESTS=tests/launch`.
test-slow: .venv-slow/installed .venv-inspect/installed
	$(SLOW)/python tests/run_slow.py --page docs/test-slow.md $(SLOW_TESTS)

# The upper end of the bounds: `make test-newest PYTHON=python3.13` (docs/install.md).
test-newest: .venv-newest/installed
	.venv-newest/bin/python -m pytest -m "not slow" -n 2 --dist worksteal

# Makes the packaged tiny checkpoint again, from nothing; it is replaced when all is done.
pretrain: .venv/installed
	$(BIN)/python -m stepalign_jax.pretrain --config configs/tiny.py --to $(TINY) --overwrite
	$(BIN)/python -m stepalign_jax.probe --config configs/tiny.py --to $(TINY)/roles-easy.json
	$(BIN)/python -m stepalign_jax.probe --config configs/tiny.py:hard --to $(TINY)/roles-hard.json

# Rivals that benchmarks run in processes of their own.
peers: .venv-peers/installed .venv-trl/installed

clean:
	rm -rf .venv .venv-slow .venv-inspect .venv-newest .venv-peers .venv-trl .venv-notebook build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'error: stepalign_jax needs Python 3.11 or later as $(PYTHON); name another with "make PYTHON=...".' >&2; \
	  exit 2; }
	$(PYTHON) -m venv .venv

# The stamps make the installation run again only when the requirements change.
.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@ .venv/installed

# PyTorch and the TPU compiler stay out of .venv, which is what users have.
.venv-slow/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PYTHON) -m venv .venv-slow
	$(SLOW)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,slow,gym]'
	@touch $@

.venv-inspect/installed: pyproject.toml
	$(PYTHON) -m venv .venv-inspect
	.venv-inspect/bin/python -m pip install --quiet --editable '.[test,inspect]'
	@touch $@

.venv-newest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --editable '.[test]'
	@touch $@

.venv-peers/installed: | .venv/bin/python
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet google-tunix==0.1.7
	@touch $@

# TRL and Tunix want versions of their own.
.venv-trl/installed: constraints.txt | .venv/bin/python
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install --quiet --constraint constraints.txt trl==1.16.0 peft torch
	@touch $@
