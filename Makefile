# make demo       set up, answer a question about a bundled clip, and show how
# make test       set up and run the tests
# make setup      set up alone: .venv/bin/pvlm is the command
# make lint       style and types
# make clean      remove what set-up made
#
# PYTHON=python3.12            another interpreter
# TORCH_INDEX=URL              a package index to take torch from, for instance one with CPU-only or CUDA builds

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test setup lint clean

demo: setup
	@$(BIN)/pvlm demo

test: setup
	$(BIN)/python -m pytest

setup: $(VENV)/.installed

# torch comes first and by itself: where TORCH_INDEX is given, nothing else may be taken from there.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch (once; this may take some minutes) ..."
	@$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@echo "installing pvlm and what it needs ..."
	@$(INSTALL) --editable '.[hf,recipes,test,lint]'
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)
