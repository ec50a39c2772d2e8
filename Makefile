# make demo     draw a picture with the packaged model (installs what running needs into .venv)
# make test     run the test suite
# make peer-tests DIFFUSERS=…  run diffusers' own test files, from a checkout of its sources, on our classes
# make fuzz     open 20,000 damaged headers, configs, tokenizers and pictures; a quarter of an hour
# make soak     thousands of requests to a server, right and wrong, a thousand that are drawn, servers and batches that are killed; half an hour
# make browser  install Debian's Chromium and what drives it, for the tests of the server's page
# make check    ruff, pyright, import-linter, hadolint, types of devices named in device/ only, generated files are fresh
# make generated  draw what follows from the techniques' declarations: price list, options of generate, pipelines' methods
# make docs     build the site into site/
# make bench    measure this CPU with the full-size SD1.5 network, beside diffusers and OpenVINO; half an hour
# make bench-compiled  the same with torch.compile, ours and diffusers'; a quarter of an hour more
# make bench-plan  the planner's predictions against what is measured, on this CPU; half an hour
# make bench-gpu  the same on one CUDA GPU, with what PYTHON has installed; nine minutes
# make report   draw benchmarks/README.md from benchmarks/results
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
DOCS := $(VENV)/.docs-installed
PEERS := $(VENV)/.peers-installed
PEER_TESTS := $(VENV)/.peer-tests-installed

.PHONY: help demo test fuzz soak browser peer-tests check generated docs bench bench-compiled bench-plan bench-gpu report setup wheel clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile

demo: $(RUN)
	@$(BIN)/leandiffusion demo

test: $(TEST)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

peer-tests: $(PEER_TESTS)
	$(BIN)/python -m tools.peer_tests $(DIFFUSERS) $(ARGS)

fuzz: $(TEST)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(ARGS)

soak: $(TEST)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --work $(WORK) $(ARGS)

browser: $(TEST)
	command -v chromium >/dev/null || { apt-get update && apt-get install -y --no-install-recommends chromium; }
	$(PIP) -e '.[browser]'
	$(BIN)/python -m pytest tests/unit/server/test_page.py $(ARGS)

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m tools.device_names
	$(BIN)/python -m tools.generated --check
	$(BIN)/hadolint Dockerfile

generated: $(RUN)
	@$(BIN)/python -m tools.generated

docs: $(DOCS)
	@$(BIN)/python -m tools.generated
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The runs share one folder for the network's 2 GB of random weights, and what peers convert.
WORK ?= /tmp/leandiffusion-bench
RESULTS := benchmarks/results
MAIN_ROWS := best_fp32,diffusers_fp32,openvino_f32
MEMORY_ROWS := resident,model_offload,sequential_offload,least
COMPILED_ROWS := plain,best_fp32,defaults,compiled,diffusers_half,diffusers_compile
ATTENTION_ROWS := 512_before,512_after
, := ,
ON_CPU = $(BIN)/leandiffusion bench $(1) --model shape:sd15 --device cpu --work $(WORK) \
    --out $(RESULTS)/cpu-$(1)-$(2).jsonl $(3)
ON_GPU = PYTHONPATH=src $(PYTHON) -m leandiffusion bench $(1) --model shape:sd15 --device cuda --work $(WORK) \
    --out $(RESULTS)/cuda-$(1).jsonl $(2)

bench: $(PEERS)
	$(call ON_CPU,published,256px,--size 256 --steps 3 --repeat 2 --peers diffusers$(,)openvino)
	$(call ON_CPU,published,512px,--size 512 --steps 3 --repeat 2 --peers diffusers$(,)openvino --rows $(MAIN_ROWS))
	$(call ON_CPU,memory,512px,--size 512 --steps 2 --repeat 1 --rows $(MEMORY_ROWS))
	$(call ON_CPU,attention,512px,--steps 2 --repeat 1 --rows $(ATTENTION_ROWS))

bench-compiled: $(PEERS)
	$(call ON_CPU,published,256px-compiled,--size 256 --steps 3 --repeat 2 --peers diffusers --rows $(COMPILED_ROWS))

bench-plan: $(TEST)
	$(BIN)/python -m benchmarks.plan --work $(WORK) --profile $(ARGS)

bench-gpu:
	$(call ON_GPU,published,--steps 50 --repeat 2 --rows all)
	$(call ON_GPU,memory,--steps 10 --repeat 1)
	$(call ON_GPU,attention,--steps 5 --repeat 1)

report: $(TEST)
	@$(BIN)/python -m tools.bench_report

setup: $(TEST) $(DEV)

wheel: $(BASE)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) dist build site .pytest_cache .ruff_cache .import_linter_cache .hypothesis

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

$(PEERS): $(RUN) $(SPEC)
	$(PIP) -e '.[bench,peers]'
	@touch $@

$(PEER_TESTS): $(TEST) $(SPEC)
	$(PIP) -e '.[peer-tests]'
	@touch $@

$(DEV): $(RUN) $(SPEC)
	$(PIP) -e '.[bench,serve,dev]'
	@touch $@

$(DOCS): $(RUN) $(SPEC)
	$(PIP) -e '.[docs]'
	@touch $@
