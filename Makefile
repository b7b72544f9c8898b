# The environment. One of your own (VENV=$$CONDA_PREFIX, say) is used as it is: a torch 2.13 in it, a CUDA build for
# example, is kept, and one of another version stops the installation instead of being replaced.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.fastnlp_adv
# Two processes of one thread each are faster on the small models of the tests than one process of many threads.
JOBS ?= 2

.PHONY: help demo bench test lint format upstream clean

help:  ## Show this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16
	@echo "  VENV=DIR      use or make the environment in DIR instead of .venv"
	@echo "  PYTHON=EXE    make the environment with this Python 3.11"
	@echo "  FASTNLP=DIR   for upstream: a clone of fastNLP's repository, or its address"
	@echo "  ARGS=...      for bench: ARGS='--only methods --again', ARGS=--help"

demo: $(STAMP)  ## Train on movie reviews: plain, with FGM and with R-Drop, and compare
	@PYTHONWARNINGS="ignore:pkg_resources is deprecated as an API" $(BIN)/python examples/demo.py

bench: $(STAMP)  ## Measure what each method costs, beside textbook loops, into docs/benchmarks: about 15 minutes
	@PYTHONWARNINGS="ignore:pkg_resources is deprecated as an API" $(BIN)/python -m benchmarks $(ARGS)

test: $(STAMP)  ## Run the tests and the examples in the docstrings
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --cov --cov-report=term

lint: $(STAMP)  ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)  ## Put the code into the style that lint checks
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# fastNLP's tests import torchmetrics too; in this version it takes what those of both its branches ask for.
upstream: $(STAMP)  ## Apply the patches for fastNLP to it and try the result: 3 minutes
	@test -d build/upstream/site/torchmetrics || \
		$(BIN)/python -m pip install -qq --no-deps --target build/upstream/site torchmetrics==0.8.2 pyDeprecate==0.3.2
	@PYTHONPATH=$(CURDIR)/build/upstream/site $(BIN)/python upstream/check.py

clean:  ## Remove .venv and all caches
	rm -rf .venv .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache build/upstream *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v[:2] == (3, 11) or sys.exit("Expected Python 3.11, but got %d.%d. Name one: make PYTHON=python3.11" % v[:2])'
	@$(PYTHON) -m venv $(VENV)

# torch first and pinned: a package that asks for just any torch could pull the CUDA libraries, several GB.
$(STAMP): setup.cfg setup.py pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV), a few minutes the first time ..."
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install -qq torch==2.13.0
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[examples,dev]' \
		"torch==$$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))')"
	@touch $@
