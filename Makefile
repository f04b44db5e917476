SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Laws of mathematics share all cores. What starts servers and workers is apart from them, two files
# at a time, for they wait as often as they compute; those that take longest come first.
SIDE_BY_SIDE := tests/architecture tests/properties $(filter-out %/service %/worker,$(wildcard tests/unit/*))
TWO_BY_TWO := tests/integration tests/browser tests/unit/service tests/unit/worker tests/golden

.PHONY: help install demo up data check audit test proof fuzz golden format clean cluster faults
.DEFAULT_GOAL := help

help:  ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("matnas needs Python 3.11 or newer; say make PYTHON=/path/to/python3.11")'
	@echo "installing into $(VENV): about two minutes, and 1.7 GB"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

install: $(STAMP)  ## Make .venv with everything in it; the other targets do so by themselves

demo: $(STAMP)  ## Run a real search on real data, and show what it found
	$(BIN)/python -m examples.demo

up: $(STAMP)  ## Start the service and its worker, and keep them running
	$(BIN)/matnas up

data: $(STAMP)  ## Fetch Fashion-MNIST and the State of the Union by apt-get and npm; needs no root
	$(BIN)/matnas data

check: $(STAMP)  ## Format, lint, types, import contracts, unsafe code, its shape
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive models search service worker examples
	$(BIN)/python -m pytest -q tests/architecture

audit: $(STAMP)  ## Ask PyPI for known holes in the installed packages; needs the network
	$(BIN)/pip-audit --skip-editable --progress-spinner off

test: $(STAMP)  ## Run every test, with coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --cov --cov-report= $(SIDE_BY_SIDE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
		--cov --cov-append --cov-report= $(TWO_BY_TWO)
	$(BIN)/python -m coverage report

proof: $(STAMP)  ## Whole, what the tests run shortened: the demo's search, compiled layers, fresh laws
	FULL_PROOF=1 $(BIN)/python -m pytest tests/integration/test_demo_on_servers.py
	FULL_PROOF=1 $(BIN)/python -m pytest tests/unit/models/test_compilation.py -k generated
	FULL_PROOF=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto tests/properties

cluster: $(STAMP)  ## Run what docker-compose.yml runs, by hand: own servers, API, two workers
	$(BIN)/python -m tests.cluster

faults: $(STAMP)  ## Kill, stop, fill and cut off whatever there is during searches; QUICK=1 is short
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.storm $(if $(QUICK),--quick)

fuzz: $(STAMP)  ## Ask the service for all that its document admits, and send it harm; QUICK=1 for less
	FULL_PROOF=$(if $(QUICK),,1) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout 7200 -o faulthandler_timeout=7300 \
		tests/unit/service/test_fuzz_rest.py tests/unit/service/test_fuzz_uploads.py \
		tests/unit/service/test_fuzz_specs.py

golden: $(STAMP)  ## Write the numbers in tests/golden anew, when they are meant to move
	$(BIN)/python -m tests.golden.test_losses

format: $(STAMP)  ## Format, and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove the environment and every cache; searches under MATNAS_HOME stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage*
