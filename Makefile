# `make demo` and `make test` need nothing but Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TESTS ?= not slow and not clients
WORKERS ?= 2
REVISION ?= HEAD

.PHONY: demo test test-slow test-clients fuzz same lint clean

demo: .venv/installed-recipes  ## train, prune, retrain and compare a small network on real images
	$(BIN)/python recipes/prune.py

test: .venv/installed-browser  ## the test suite, without the sweeps over large networks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "$(TESTS)"

test-slow: .venv/installed-dev  ## the sweeps over large networks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m slow

test-clients: .venv/installed-dev  ## networks of other libraries, as far as these are installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m clients

fuzz: .venv/installed-dev  ## the laws on 2,000 random networks each, instead of 40
	FUZZ_NETWORKS=2000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) tests/test_fuzz.py

same: .venv/installed-dev  ## whether the package still does, bit for bit, what it did at REVISION
	OMP_NUM_THREADS=1 $(BIN)/python tests/behaviour.py $(REVISION)

lint: .venv/installed-dev  ## style, formatting, types, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; set PYTHON=..."'
	$(PYTHON) -m venv .venv

.venv/installed-recipes: pyproject.toml | .venv/bin/python
	@echo "Installing PyTorch, Lightning and what the recipes need; this takes some minutes the first time ..."
	$(PIP) --editable '.[recipes]'
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	@echo "Installing PyTorch, Lightning and the development tools; this takes some minutes the first time ..."
	$(PIP) --editable '.[dev]'
	@touch $@ .venv/installed-recipes

.venv/installed-browser: .venv/installed-dev
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name > /dev/null && exit; done; $(BIN)/python -m playwright install chromium
	@touch $@

clean:
	rm -rf .venv outputs build *.egg-info .pytest_cache .ruff_cache .import_linter_cache .mypy_cache .hypothesis
