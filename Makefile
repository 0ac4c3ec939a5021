# On a machine with Python 3.11, pip and make: `make demo` and `make test` do all set-up themselves.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup test slow lint demo clean

help: ## list these targets
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(READY) ## make .venv and install growkit into it, editable

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV): about a minute, or as long as torch takes to download" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

test: setup ## run the test suite
	@$(BIN)/python -m pytest --quiet

slow: setup ## run the tests that take longer
	@$(BIN)/python -m pytest --quiet -m slow

lint: setup ## check format, style and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

demo: setup ## fetch a trained BERT, grow it twice, verify both
	@PATH="$(abspath $(BIN)):$$PATH" examples/demo.sh build/demo

clean: ## remove what the other targets made
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
