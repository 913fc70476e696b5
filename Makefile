# Every target sets up .venv by itself the first time (see .ci/setup.py); only Python >= 3.11 with
# pip, and make, are needed. TORCH=cpu|cuda|skip overrides which torch is installed.

# The interpreter that .venv is made from: the first of these that runs and is new enough.
CANDIDATES := python3.13 python3.12 python3.11 python3 python
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do "$$p" -c '$(NEW_ENOUGH)' 2>/dev/null && echo "$$p" && break; done)

BIN := .venv/bin
STAMP := .venv/.setup-done
ARGS ?=

# Tests start many processes; each would compile torch and pandas again if none kept what it compiled.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test fuzz soak check lint types oldest format bench docs picture notebooks clean distclean FORCE

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Create .venv with all that the other targets need

# Also when TORCH is given, to see whether that is the torch that is there, and when .venv's Python
# is gone from the system.
$(STAMP): pyproject.toml .ci/setup.py $(if $(TORCH),FORCE) $(shell test -x $(BIN)/python || echo FORCE)
	@python="$(PYTHON)"; \
	test -n "$$python" || { echo "error: no Python >= 3.11 among: $(CANDIDATES); name one with PYTHON=..." >&2; exit 1; }; \
	TORCH="$(TORCH)" "$$python" .ci/setup.py

demo: $(STAMP) ## Encode real documents with a real model, and look at them: writes demo/
	$(BIN)/interp-embed demo $(ARGS)

# A process for each core, four at most: each of them has a model in memory. One that has nothing left
# to do takes over from another, so that all cores are busy to the end.
test: lint types ## Lint, types and all tests (ARGS="-k store" to choose among the tests)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal $(ARGS)

SECONDS ?= 600

fuzz: $(STAMP) ## Search for inputs that fail, always others, for SECONDS=600 (hours are fine)
	$(BIN)/python -m tests.support.fuzz $(SECONDS) $(ARGS)

soak: $(STAMP) ## Kill encodings and labellings thousands of times at random moments (hours)
	$(BIN)/python -m pytest -m soak -n logical --maxprocesses 4 --dist worksteal $(ARGS)

check: test ## The same as test

lint: $(STAMP) ## ruff: rules and format; import-linter: who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

types: $(STAMP) ## mypy
	$(BIN)/mypy

# In an environment of its own. What is listed is what pyproject.toml allows at least.
oldest: $(STAMP) ## Run the tests of lazy arrays with the oldest xarray and dask that are allowed
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv/oldest
	$(BIN)/uv pip install --quiet --python .venv/oldest/bin/python --editable '.[io,cluster]' \
		'xarray==2025.1.*' 'dask[array]==2025.1.*' 'distributed==2025.1.*' \
		pytest pytest-timeout hypothesis
	.venv/oldest/bin/python -m pytest tests/lazy $(ARGS)

format: $(STAMP) ## Rewrite the code as ruff formats it, with its safe fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(STAMP) ## Run the benchmarks
	$(BIN)/python benchmarks/store.py $(ARGS)

docs: $(STAMP) ## Build the documentation into build/docs; warnings are errors
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs $(ARGS)
	@echo "build/docs/index.html"

picture: demo ## Draw the README's picture again, from the demo's store
	$(BIN)/python scripts/make_picture.py demo/demo.zarr

notebooks: $(STAMP) ## Run the notebooks and keep what they show in them
	$(BIN)/jupyter-execute --inplace notebooks/*.ipynb

clean: ## Remove caches, builds and the demo's output
	rm -rf demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv
	rm -rf .venv
