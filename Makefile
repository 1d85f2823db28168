# Each target is one line a person would type. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup train test test-tools test-fast test-gpu check sweep bench bench-sweep equivalence resume-matrix fit-table memory tiny data report bench-serve bench-kernels bench-gpu

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

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

test: setup ## Every test, two side by side
	@$(PY) -m pytest -n 2 --dist loadgroup $(ARGS)

test-tools: ## Debian packages that the tests of many machines and of the report need (as root; else those are skipped)
	@tests/support/install.sh

test-fast: setup ## The tests that take no more than half a minute each
	@$(PY) -m pytest -m "not slow" $(ARGS)

test-gpu: setup ## The tests that need a CUDA device
	@$(PY) -m pytest -m gpu $(ARGS)

check: setup ## ruff, mypy, import layers
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

sweep: setup ## A small multirun: three ranks of LoRA by two learning rates
	@$(PY) train.py -m lora.r=4,8,16 train.learning_rate=2e-3,4e-3 $(ARGS)

report: setup ## Table, summary.csv and report.html of the newest sweep, or of ARGS="multirun/…"
	@$(PY) -m hydraft sweep $(ARGS)

equivalence: setup ## Train the same data in every topology and print how far the results lie apart
	@$(PY) bench/equivalence.py $(ARGS)

resume-matrix: setup ## Go on with a run in every topology and print how far its end lies from the uninterrupted one (some 20 minutes)
	@$(PY) bench/resume.py $(ARGS)

fit-table: setup ## The fewest cards that train each size under each ZeRO stage, by the plan
	@$(PY) bench/fit.py $(ARGS)

memory: setup ## What the plan says of memory beside what is measured, on a GPU or (some four minutes, 5 GB) on the CPU
	@$(PY) bench/memory.py $(ARGS)

bench: setup ## How fast --help and a refusal answer; samples a second beside transformers' Trainer
	@$(PY) bench/startup.py
	@$(PY) bench/throughput.py $(ARGS)

bench-sweep: setup ## What a sweep costs beside its training (some three minutes)
	@$(PY) bench/sweep.py $(ARGS)

bench-serve: setup ## Tokens a second of mode=serve, 16 requests at once, beside transformers' own server
	@$(PY) bench/serve.py $(ARGS)

bench-kernels: setup ## Tokens a second and memory of the same run with each kind of kernels
	@$(PY) bench/kernels.py $(ARGS)

# On a machine with neither .venv nor network, WHEELS is a folder of wheels, and python3 has torch and transformers already.
bench-gpu: $(if $(WHEELS),,setup) ## All that is worth measuring on a GPU in BUDGET=530 seconds: PARTS="first tests chatglm2 llama serve" OUT=… SCRATCH=… WHEELS=…
	@$(if $(WHEELS),$(PYTHON),$(PY)) -m bench.gpu --budget "$(BUDGET)" --parts "$(PARTS)" --out "$(OUT)" --wheels "$(WHEELS)" --scratch "$(SCRATCH)" $(if $(REHEARSE),--rehearse) $(ARGS)

data: setup ## Write the instruction set again from its generator
	@$(PY) data/generate.py

tiny: setup ## Train the embedded model again from random weights (some 15 minutes)
	@$(PY) data/generate.py --corpus data/tiny_corpus.jsonl
	@$(PY) data/make_tiny.py --corpus data/tiny_corpus.jsonl outputs/tiny/start
	@rm -rf outputs/tiny/run
	@$(PY) train.py experiment=tiny_pretrain hydra.run.dir=outputs/tiny/run $(ARGS)
	@$(PY) data/make_tiny.py --publish outputs/tiny/run/model src/hydraft/models/tiny
