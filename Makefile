# make demo: install and run theory against a transformer.  make test: install and check everything.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO ?= demo-report
CODE = rpo tests benchmarks notebooks examples

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow notebooks bench bench-sweeps gpu lint docs clean

help:  ## Show what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed  ## Compare theory, table and transformer; write demo-report/report.html
	$(BIN)/rpo compare --output $(DEMO) --overwrite true

lint: $(VENV)/.installed-dev  ## ruff and mypy
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

test: lint  ## Lint, types and the default tests (minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow' $(TESTS)

test-slow: $(VENV)/.installed-dev  ## The slow tier: grids and long runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow $(TESTS)

notebooks: $(VENV)/.installed-dev  ## Run every notebook from a clean kernel; its text must be the committed one
	$(BIN)/python notebooks/execute.py $(NOTEBOOKS)

bench: $(VENV)/.installed-dev  ## The benchmarks: tables into benchmarks/results (minutes)
	for name in batched sweep coverage_skew zhu bounds explore lists; do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py || exit 1; done
	# Against TRL, on a real model: where there is one.
	test -z "$$RPO_SMOLLM2" || $(BIN)/python benchmarks/vs_trl.py

bench-sweeps: $(VENV)/.installed-dev  ## Sweeps and the batched solver, on idle cores: results and their tables (minutes)
	for name in batched sweep; do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/tables.py

gpu:  ## On a machine with one H100 or H200, PYTHON its own: torch with CUDA, transformers, accelerate, peft, pytest
	# Against TRL it also needs trl, datasets, dill and multiprocess: GPU="--wheels FOLDER" takes them as wheels.
	$(PYTHON) benchmarks/gpu.py --output runs/gpu $(GPU)

docs: $(VENV)/.installed  ## The documentation site, in site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:  ## Remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
