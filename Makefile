# The environment. constraints.txt pins the versions of the main one, for Python 3.11 and torch 2.13. With another Python, or
# in your own environment with another torch, installed packages are kept, and the newest versions that fit are added.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.fastnlp_adv
# Two processes of one thread each are faster on the small models of the tests than one process of many threads.
JOBS ?= 2

.PHONY: help demo bench test faults lint format docs matrix dist smoke upstream clean

help:  ## Show this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16
	@echo "  VENV=DIR      use or make the environment in DIR instead of .venv"
	@echo "  PYTHON=EXE    make the environment with this Python, 3.11 for the main one"
	@echo "  ARGS=...      for bench and faults: ARGS='--only NAME --again', ARGS=--help; for matrix: ARGS='-s py3.10-torch2.1.2'"
	@echo "  FASTNLP=DIR   for upstream: a clone of fastNLP's repository, or its address"

demo: $(STAMP)  ## Train on movie reviews, plain, with FGM and with R-Drop, and attack each: about six minutes
	@PYTHONWARNINGS="ignore:pkg_resources is deprecated as an API" $(BIN)/python examples/demo.py

bench: $(STAMP)  ## Measure the cost of each method and of textbook loops, for docs/benchmarks: about 15 minutes
	@PYTHONWARNINGS="ignore:pkg_resources is deprecated as an API" $(BIN)/python -m benchmarks $(ARGS)

test: $(STAMP)  ## Run the tests and the examples in the docstrings
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --cov --cov-report=term

faults: $(STAMP)  ## Activate deliberate faults, one by one, and list the tests that catch them: about half an hour
	@PYTHONWARNINGS="ignore:pkg_resources is deprecated as an API" $(BIN)/python tools/faults.py $(ARGS)

lint: $(STAMP)  ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)  ## Format the code for lint
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

SPHINX = $(BIN)/python -W ignore -m sphinx -q -W --keep-going -b html -c docs

docs: $(STAMP)  ## Build the documentation sites, English and Chinese, into docs/_build/html
	@$(BIN)/python -c 'import furo, merm, myst_parser' 2>/dev/null || $(BIN)/python -m pip install -qq -c constraints.txt -e '.[docs]'
	@$(SPHINX) -d docs/_build/doctrees/en docs docs/_build/html
	@$(SPHINX) -t chinese -d docs/_build/doctrees/zh-CN docs/zh-CN docs/_build/html/zh-CN
	@echo "Built docs/_build/html/index.html and docs/_build/html/zh-CN/index.html"

matrix: $(STAMP)  ## Run the tests in all supported environments, for docs/versions.md: hours, and 3 GB per download
	@$(BIN)/nox $(ARGS); status=$$?; $(BIN)/python tools/versions_page.py && exit $$status

dist: $(STAMP)  ## Build the sdist and the wheel into dist, and check them
	@$(BIN)/nox -s dist

smoke: dist  ## Test the wheel with torch 2.4, a download of 3 GB, and without fastNLP (only this: ARGS='--only loop')
	@$(BIN)/python tools/smoke.py $(ARGS)

# fastNLP's tests import torchmetrics too; this version works with the tests of both its branches.
upstream: $(STAMP)  ## Apply the patches to fastNLP and test the result: 3 minutes
	@test -d build/upstream/site/torchmetrics || \
		$(BIN)/python -m pip install -qq --no-deps --target build/upstream/site torchmetrics==0.8.2 pyDeprecate==0.3.2
	@PYTHONPATH=$(CURDIR)/build/upstream/site $(BIN)/python upstream/check.py

clean:  ## Remove .venv and all caches
	rm -rf .venv .nox docs/_build build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV)

# Exit with 0 if Python, and the installed torch, are the main ones: then constraints.txt applies.
IS_MAIN = import sys; sys.exit(sys.version_info[:2] != (3, 11))
HAS_MAIN_TORCH = from importlib.metadata import version; import sys; sys.exit(not version("torch").startswith("2.13.0"))

# torch first and pinned: a package that asks for just any torch could pull the CUDA libraries, several GB.
$(STAMP): setup.cfg setup.py pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV), a few minutes the first time ..."
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install -qq \
		"torch$$($(BIN)/python -c '$(IS_MAIN)' && echo ==2.13.0)"
	@$(BIN)/python -m pip install -qq -e '.[examples,dev]' \
		$$($(BIN)/python -c '$(IS_MAIN)' && $(BIN)/python -c '$(HAS_MAIN_TORCH)' && echo -c constraints.txt) \
		"torch==$$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))')"
	@touch $@
