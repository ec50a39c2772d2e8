# make demo     draw a picture with the packaged model (installs what running needs into .venv)
# make test     run the test suite
# make check    ruff, pyright, import-linter
# make docs     draw docs/techniques.md from the techniques' declarations
# make setup    prepare .venv with everything
# make wheel    build dist/*.whl
#
# Needs Python 3.11 or newer; another interpreter: make demo PYTHON=python3.12
# Where no GPU is meant to be used, torch's CPU build is far smaller:
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
SPEC := pyproject.toml constraints.txt
# What is installed is remembered by stamp files, so that a second run installs nothing.
BASE := $(VENV)/.base-installed
RUN := $(VENV)/.run-installed
TEST := $(VENV)/.test-installed
DEV := $(VENV)/.dev-installed

.PHONY: help demo test check docs setup wheel clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile

demo: $(RUN)
	@$(BIN)/leandiffusion demo

test: $(TEST)
	$(BIN)/python -m pytest $(ARGS)

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(RUN)
	@$(BIN)/python -m tools.price_list

setup: $(TEST) $(DEV)

wheel: $(BASE)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(BASE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    f"Lean Diffusion needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(RUN): $(BASE) $(SPEC)
	@echo "Installing what running needs into $(VENV): a few minutes the first time."
	$(PIP) -e .
	@touch $@

$(TEST): $(RUN) $(SPEC)
	$(PIP) -e '.[test]'
	@touch $@

$(DEV): $(RUN) $(SPEC)
	$(PIP) -e '.[dev]'
	@touch $@
