.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/usable: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "hf_distill needs Python 3.11 or later, $(PYTHON) is older: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	@touch $@

.venv/ready: .venv/usable
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: .venv/ready ## Make .venv with the package and all that work on it needs

demo: .venv/usable ## Distil a digits classifier: 80 seconds of training, after the packages are there
	$(BIN)/hf-distill train recipes/vision/digits.yaml

test: .venv/ready ## Run the tests in JOBS processes (2), but for the slow ones
	$(PYTEST) -m "not slow"

test-all: .venv/ready ## Run all tests, the slow ones too
	$(PYTEST) --durations=15

faults: .venv/ready ## Push with every fault at every step (208 cases)
	HF_DISTILL_ALL_FAULTS=1 $(PYTEST) tests/hub/test_push_faults.py

check: .venv/ready ## Lint and check types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/ready ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove .venv and what tools have left
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help install demo test test-all faults check format clean
