# Everything starts from here: `make help`. A fresh clone needs Python 3.11 or newer, pip and make, nothing else.
# The set-up is one stamp file; every target that runs Python depends on it.

PYTHON ?= python3
SCENARIO ?= watch

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two workers, which take over each other's tests towards the end.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

# mkdocs-material advertises its successor on every build.
export NO_MKDOCS_2_WARNING = 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test check check-all static format docs bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-10s %s\n' "$$name" "$$text"; done

venv: $(STAMP) ## set up .venv (every other target does it by itself)

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgestill needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "setting up $(VENV) (once; some minutes and about 2 GB)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt pip
	@$(PIP) install -c constraints.txt --build-constraint constraints.txt -e ".[demo]" --group dev
	@touch $@

demo: $(STAMP) ## walk the whole route on this machine (SCENARIO=watch)
	$(BIN)/edgestill demo --scenario $(SCENARIO)

test: $(STAMP) ## the tests that need no registry and take seconds each (some minutes in all)
	$(PYTEST) -m "not slow and not installs"

check: static ## all of: format, lint, types, contracts, docs, tests, bare installs
	$(PYTEST) -m "not slow"

check-all: static ## check, and the tests that take minutes
	$(PYTEST)

static: $(STAMP) ## check without the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --site-dir site

docs: $(STAMP) ## build the documentation into site/
	$(BIN)/mkdocs build --strict --site-dir site
	$(BIN)/python -m pytest --quiet tests/test_docs.py

format: $(STAMP) ## format the code and apply safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## run every benchmark of bench/
	@set -e; for script in $(wildcard bench/bench_*.py); do echo "$$script"; $(BIN)/python "$$script"; done

clean: ## remove what the other targets made, .venv included
	rm -rf $(VENV) demo-watch demo-images build dist site run .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
