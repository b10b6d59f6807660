# `make` lists what there is.  Everything runs in .venv, which `make setup` builds from constraints.txt.

PYTHON ?= python3
DEMO_FLAGS ?=
PYTEST_FLAGS ?=
TORCH_INDEX ?=

BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test format-check lint format types unit faults clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\n'
	@printf '  %s\n' \
	  'PYTHON=python3.12             the Python to build .venv with (3.11 or later)' \
	  'TORCH_INDEX=URL               another source of torch, as https://download.pytorch.org/whl/cpu' \
	  'DEMO_FLAGS="..."              passed to mt demo' \
	  'PYTEST_FLAGS="-k beam"        passed to pytest'

setup: $(READY) ## build .venv with mt in it (again only when what it is built from changes)

# torch comes first: which build of it is a choice of its own, and nothing after may replace it.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: mt needs Python 3.11 or later\nhint:  make setup PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## train a small model on the demo corpus and translate with it
	$(BIN)/mt demo --output runs/demo $(DEMO_FLAGS)

test: format-check lint types unit ## all checks: format, lint, types, tests

format-check: $(READY)
	$(BIN)/ruff format --check

lint: $(READY) ## ruff
	$(BIN)/ruff check

types: $(READY) ## mypy
	$(BIN)/mypy

unit: $(READY) ## pytest, with coverage: a process for each core, which take files of tests in turn
	$(BIN)/python -m pytest -n auto --dist loadfile --cov --durations=10 $(PYTEST_FLAGS)

faults: $(READY) ## the long form of what training must survive: a hundred kills, half as many of two processes
	MT_KILLS=100 $(BIN)/python -m pytest tests/faults

format: $(READY) ## rewrite the code as ruff would have it
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean: ## remove caches and built packages (.venv and runs stay)
	rm -rf build dist htmlcov .coverage .pytest_cache .mypy_cache .ruff_cache
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +

# One check after another, also under `make -j`: their outputs are read in order.
.NOTPARALLEL:
