# Everything a person runs, from a fresh machine with Python 3.10 or newer.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/mini-cola.yaml
SEEDS ?= 0 1 2
RUNS ?= runs/$(basename $(notdir $(CONFIG)))

BIN := $(VENV)/bin
COLAKIT := $(BIN)/colakit
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-dev lint typecheck test test-slow test-gpu demo \
	reproduce reproduce-lora reproduce-distill reproduce-scratch bench clean

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

lint: install-dev ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: install-dev ## mypy
	$(BIN)/mypy

test: lint typecheck ## lint, type-check and test; offline, minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadgroup --durations 10

test-slow: install-dev ## tests that take minutes
	$(BIN)/pytest -m slow

test-gpu: install-dev ## tests that need a CUDA device
	$(BIN)/pytest -m gpu

demo: install ## the whole pipeline on small inputs of its own, in a minute or two
	$(BIN)/python -m colakit.toy demo
	$(COLAKIT) generate --config configs/demo.yaml --prompt "The old" --max-new-tokens 12
	rm -rf demo/runs
	$(MAKE) --no-print-directory reproduce CONFIG=configs/demo.yaml RUNS=demo/runs SEEDS="0 1 2"

# A finished run is kept, an interrupted one goes on where it stopped.
define run_seeds
	@for seed in $(SEEDS); do \
		out=$(RUNS)/$(1)-$$seed; \
		test -f $$out/summary.json && { echo "$$out is finished"; continue; }; \
		resume=$$(test -f $$out/state.pt && echo --resume); \
		$(COLAKIT) $(1) --config $(CONFIG) --seed $$seed --out $$out $$resume $(2) || exit 1; \
	done
endef

reproduce-lora: install ## CONFIG=... SEEDS="0 1 2": tune the base
	$(call run_seeds,finetune)

reproduce-distill: reproduce-lora ## ... and distil each tuned model
	$(call run_seeds,distill,--teacher $(RUNS)/finetune-$$seed)

reproduce-scratch: install ## ... and train the same students without a teacher
	$(call run_seeds,train-scratch)

reproduce: reproduce-lora reproduce-distill reproduce-scratch ## all three, compared and plotted
	$(COLAKIT) evaluate --config $(CONFIG) --out $(RUNS)/evaluation \
		$(foreach command,finetune distill train-scratch,$(SEEDS:%=$(RUNS)/$(command)-%))
	$(COLAKIT) plot --config $(CONFIG) --out $(RUNS)/plots \
		$(foreach command,finetune distill train-scratch,$(SEEDS:%=$(RUNS)/$(command)-%))

bench: install-dev ## fine-tuning speed beside PEFT and the Trainer, in one run
	$(BIN)/python benchmarks/finetuning.py

clean: ## remove the environment, caches and demo; runs/ stays
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
