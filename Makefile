# Everything a person runs, from a fresh machine with Python 3.10 or newer.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/builtin-cola.yaml
SEEDS ?= 0 1 2
RUNS ?= runs/$(basename $(notdir $(CONFIG)))
JOBS ?= 2
THREADS ?= 1

BIN := $(VENV)/bin
COLAKIT := $(BIN)/colakit
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install install-dev lint audit typecheck test test-slow torture test-gpu demo \
	reproduce reproduce-lora reproduce-distill reproduce-scratch ablation base-table bench bench-full \
	install-bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 20

install: $(VENV)/.installed ## create the environment and install colakit

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	touch $@

install-dev: $(VENV)/.installed-dev ## the same, with what tests and checks need

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[test,lint]'
	touch $@

install-bench: $(VENV)/.installed-bench ## the same, with what is measured beside colakit

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[bench]'
	touch $@

lint: install-dev ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

audit: install-dev ## known weaknesses of the packages in use; asks the package index
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	$(BIN)/pip-audit --skip-editable

typecheck: install-dev ## mypy
	$(BIN)/mypy

test: lint typecheck ## lint, type-check and test; offline, minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadgroup --durations 10

test-slow: install-dev ## tests that take minutes
	$(BIN)/pytest -m slow

torture: install-dev ## kill runs of every command hundreds of times, and give every reader 10,000 hostile files
	OMP_NUM_THREADS=1 $(BIN)/python tests/stress/torture.py --kills 500 --torchrun 10 \
		--writes finetune distill train-scratch pretrain
	OMP_NUM_THREADS=1 $(BIN)/coverage run tests/hostile.py --cases 10000
	$(BIN)/coverage report

test-gpu: install-dev ## tests that need a CUDA device
	$(BIN)/pytest -m gpu

demo: install ## the whole pipeline on the base and corpus that come along, in minutes, without a network
	$(COLAKIT) demo

# A run is finished when its summary.json stands; an interrupted one goes on where it stopped. JOBS runs go
# side by side with a thread each, which uses two cores better than two threads in one run.
COMMANDS := finetune distill train-scratch
RUN_FOLDERS = $(foreach command,$(COMMANDS),$(SEEDS:%=$(RUNS)/$(command)-%))
RUN_FLAGS = --config $(CONFIG) --seed $* --out $(@D) --resume auto

$(RUNS)/finetune-%/summary.json: | install
	$(COLAKIT) finetune $(RUN_FLAGS)

$(RUNS)/distill-%/summary.json: | $(RUNS)/finetune-%/summary.json
	$(COLAKIT) distill $(RUN_FLAGS) --teacher $(RUNS)/finetune-$*

$(RUNS)/train-scratch-%/summary.json: | install
	$(COLAKIT) train-scratch $(RUN_FLAGS)

.SECONDARY:

reproduce-lora: $(SEEDS:%=$(RUNS)/finetune-%/summary.json) ## CONFIG=... SEEDS="0 1 2": tune the base

reproduce-distill: $(SEEDS:%=$(RUNS)/distill-%/summary.json) ## ... and distil each tuned model

reproduce-scratch: $(SEEDS:%=$(RUNS)/train-scratch-%/summary.json) ## ... train the students without a teacher

reproduce: install ## all three, then compared and plotted
	OMP_NUM_THREADS=$(THREADS) $(MAKE) --no-print-directory --jobs $(JOBS) \
		reproduce-lora reproduce-distill reproduce-scratch
	$(COLAKIT) evaluate --config $(CONFIG) --out $(RUNS)/evaluation $(RUN_FOLDERS)
	$(COLAKIT) plot --config $(CONFIG) --out $(RUNS)/plots $(RUN_FOLDERS)

ablation: install ## what each part of distilling adds, over five seeds; hours on two cores
	$(BIN)/python experiments/ablation.py --config $(CONFIG) --out runs/ablation \
		--set student_training.max_steps=4000 $(if $(TEXT),--text $(TEXT))

base-table: install ## what the base is worth: adapters, all weights, no pre-training, a recurrent network
	$(BIN)/python experiments/base.py --config $(CONFIG) --out runs/base

bench: install-bench ## how fast everything is, beside PEFT and the Trainer, in one run; minutes
	$(BIN)/python benchmarks/suite.py
	$(BIN)/python benchmarks/checkpoints.py

bench-full: install-bench ## the same at GPT-2 small's size on the whole corpus; hours on two cores, minutes on a GPU
	$(BIN)/python benchmarks/suite.py --scale full --out benchmarks/results/suite-full.json

clean: ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
