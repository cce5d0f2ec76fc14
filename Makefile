# Two commands for everybody: `make quickstart` (the whole chain on two CPU cores) and `make test`.
# Both complete on a fresh machine with Python 3.11 or newer and gcc; PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.starling-installed
CONFIG ?= configs/tiny.toml
PYTEST_ARGS ?=

.PHONY: help setup quickstart test lint docs clean

help:
	@echo "make quickstart   install, run the whole chain on configs/tiny.toml, say where the report is"
	@echo "make test         install, run the test suite (PYTEST_ARGS='tests/test_config.py -x' for a part of it)"
	@echo "make setup        install only"
	@echo "make lint         ruff and mypy"
	@echo "make docs         write the generated pages docs/cli.md and docs/config.md again"
	@echo "make clean        remove the environment and caches (never runs/)"

setup: $(STAMP)

# torch first and by itself: its version decides the build (CPU or CUDA), and nothing else may pull another one.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Starling needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make setup PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install -e ".[train,prompts,arena,dev]" -c constraints.txt
	@touch $(STAMP)

quickstart: setup
	$(BIN)/starling run $(CONFIG)

# Two workers with one torch thread each: faster than one worker with two threads on these small models.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
