# `make` without a target lists all targets.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
ARGS ?=
# Bytecode is cached for the many processes that tests start, even if this variable is set, as in many containers.
PYTEST := PYTHONDONTWRITEBYTECODE= $(PY) -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup train test test-tools test-fast test-gpu check format sweep report board bench bench-gpu equivalence resume-matrix fit-table memory live-bytes tiny data

help: ## List the targets
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(READY) ## Virtual environment, pinned packages, compiled DeepSpeed ops (skips what is done)
	@$(PY) -m hydraft ops

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"make: Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12 …")'
	@command -v $${CXX:-c++} >/dev/null || { echo "make: a C++ compiler is needed (Debian: apt-get install g++)"; exit 1; }
	@echo "[1/3] virtual environment in $(VENV)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] pinned packages (one to three minutes; with CUDA, a few GB)"
	@$(PY) -m pip install --disable-pip-version-check --progress-bar on -r requirements.txt
	@$(PY) -m pip install --disable-pip-version-check -q --no-deps -e .
	@echo "[3/3] DeepSpeed's ops (one to three minutes)"
	@$(PY) -m hydraft ops
	@touch $@

train: setup ## Fine-tune the embedded model with NF4 QLoRA; more with ARGS="lora.r=16 …"
	@$(PY) train.py $(ARGS)

test: setup ## All tests, on two workers
	@$(PY) -m hydraft ops nvme || true
	@$(PYTEST) -n 2 --durations=40 $(ARGS)

test-tools: ## Debian packages for the tests of many machines and of the report (needs root; without them, those tests are skipped)
	@tests/support/install.sh

test-fast: setup ## The unit tests
	@$(PYTEST) -n 2 tests/unit $(ARGS)

test-gpu: setup ## The tests that need a CUDA device
	@$(PYTEST) -m gpu $(ARGS)

check: setup ## ruff, mypy, and the order of imports
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports
	@$(PY) -m pytest tests/unit/test_structure.py

format: setup ## Sort imports and format the code, as `make check` requires
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

sweep: setup ## A small sweep: three LoRA ranks by two learning rates
	@$(PY) train.py -m lora.r=4,8,16 train.learning_rate=2e-3,4e-3 $(ARGS)

report: setup ## Table, summary.csv and report.html of the newest sweep, or of ARGS="multirun/…"
	@$(PY) -m hydraft report $(ARGS)

board: setup ## A local page of all runs and sweeps, live; folders or --port N with ARGS="…"
	@$(PY) -m hydraft board $(ARGS)

equivalence: bench-equivalence ## Train the same data in every topology and print how much the results differ

resume-matrix: bench-resume ## Resume a run in every topology and print how much it differs from an uninterrupted run (about 20 minutes)

fit-table: bench-fit ## The fewest GPUs that train each size under each ZeRO stage, according to the plan

memory: bench-memory ## Compare planned and measured memory, on a GPU or (about four minutes, 5 GB) on the CPU

live-bytes: bench-live_bytes ## Bytes of weights on every rank at every moment under ZeRO-3, compared with the libraries alone (about ten minutes)

bench: bench-startup bench-throughput ## Response time of --help and of a refusal; samples per second compared with transformers' Trainer

bench-%: setup ## bench/%.py, such as bench-sweep, bench-serve, bench-kernels, bench-structure; options with ARGS="…"
	@grep -qs __main__ bench/$*.py || { echo "make: no such bench: $*; available: $(sort $(notdir $(basename $(shell grep -l __main__ bench/*.py))))"; exit 2; }
	@$(PY) bench/$*.py $(ARGS)

# On a machine without .venv and network, WHEELS is a folder of wheels; python3 must already have torch and transformers.
bench-gpu: $(if $(WHEELS),,setup) ## All measurements for a GPU within BUDGET=530 seconds: PARTS="first llama serve tests chatglm2" OUT=… SCRATCH=… WHEELS=…
	@$(if $(WHEELS),$(PYTHON),$(PY)) -m bench.gpu --budget "$(BUDGET)" --parts "$(PARTS)" --out "$(OUT)" --wheels "$(WHEELS)" --scratch "$(SCRATCH)" $(if $(REHEARSE),--rehearse) $(ARGS)

data: setup ## Regenerate the instruction set and the preference pairs
	@$(PY) data/generate.py
	@$(PY) data/preference_pairs.py

tiny: setup ## Train the embedded model from random weights (about 15 minutes)
	@$(PY) data/generate.py --corpus data/tiny_corpus.jsonl
	@$(PY) data/make_tiny.py --corpus data/tiny_corpus.jsonl outputs/tiny/start
	@rm -rf outputs/tiny/run
	@$(PY) train.py experiment=tiny_pretrain hydra.run.dir=outputs/tiny/run $(ARGS)
	@$(PY) data/make_tiny.py --publish outputs/tiny/run/model src/hydraft/models/tiny
