# Everything runs in .venv, which is made on first use. Needs Python >= 3.11 and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
# Recordings of the published models, where they lie beside the checkout; without them their tests are skipped.
RECORDED := $(abspath ../shared)
ifneq ($(wildcard $(RECORDED)/parity/open),)
export ALIGHT_PARITY_DIR ?= $(RECORDED)/parity/open
export ALIGHT_LATENT_SAMPLES ?= $(RECORDED)/data/latent_samples
endif

.PHONY: quickstart test test-fast test-exhaustive lint format bench docs clean

quickstart: .venv/installed
	$(BIN)/alight quickstart

test: .venv/installed-dev lint
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not exhaustive"

test-fast: .venv/installed-dev
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow and not exhaustive"

test-exhaustive: .venv/installed-dev
	$(BIN)/pytest -m exhaustive

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed-dev
	$(BIN)/alight bench

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv runs site build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("alight needs Python 3.11 or newer, not " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -e . -c constraints.txt
	touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@ .venv/installed

.venv/installed-docs: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[docs]' -c constraints.txt
	touch $@ .venv/installed
