# Vitrail: everything a newcomer needs, one word each. `make` alone lists the words.
#
# Each target builds .venv first. The stamp files inside it make every later call instant; they are remade
# when pyproject.toml, constraints.txt or this file changes.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check
RECIPE := pyproject.toml constraints.txt Makefile

.PHONY: help demo test lint format bench docs clean
.DEFAULT_GOAL := help

help:  ## list these words
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

$(VENV)/.torch: $(RECIPE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Vitrail needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@echo "installing PyTorch (about half a minute, once) ..."
	@# First and alone, at exactly this version: a looser pin pulls gigabytes of GPU packages.
	@$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.demo: $(VENV)/.torch
	@echo "installing Vitrail ..."
	@$(PIP) -e '.[demo]' -c constraints.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.torch
	@echo "installing Vitrail and its test tools ..."
	@$(PIP) -e '.[dev]' -c constraints.txt
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(VENV)/.torch
	@echo "installing Vitrail and its documentation tools ..."
	@$(PIP) -e '.[docs,data,demo]' -c constraints.txt
	@touch $@

demo: $(VENV)/.demo  ## train a ViT on real scanned digits, explain it, say what to type next (under 3 minutes)
	@echo '$$ vitrail train digits'
	@$(BIN)/vitrail train digits
	@echo
	@echo 'The commands above are in $(BIN): source $(BIN)/activate'

test: $(VENV)/.dev  ## run every test
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## measure Vitrail against timm and transformers on this machine
	$(BIN)/python bench/speed.py inference
	$(BIN)/python bench/speed.py train
	$(BIN)/python bench/parity.py

docs: $(VENV)/.docs  ## build the documentation into docs/_build/html; any warning is an error
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean:  ## remove what these targets built (runs/ stays)
	rm -rf $(VENV) build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
