# Every target does its own set-up: all a fresh machine needs is Python >= 3.10, pip and make.
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV   ?= .venv
OUT    ?= curvops-report
JOBS   ?= 2

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

# One torch thread a process: the tests run in JOBS processes, which would otherwise fight over cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench docs clean

help:
	@echo "make demo    train a small network on real digits and report on its curvature"
	@echo "make test    run all tests, doctests and the examples of the documentation"
	@echo "make lint    ruff, mypy --strict and the import contract"
	@echo "make format  let ruff rewrite what it can"
	@echo "make bench   measure curvops and its peers side by side"
	@echo "make docs    build the site into site/"
	@echo "make clean   remove everything that make has made"

setup: $(STAMP)

# The stamp is written last: an interrupted installation is taken up again. The constraints hold
# from the first command on, so that no other torch is downloaded on the way. Debian ships Python
# without ensurepip; there the machine's own pip fills the environment.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "curvops needs Python >= 3.10; try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) (once; a few minutes, most of it torch) ..."
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	    $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    $(PYTHON) -m pip --quiet --python $(BIN)/python install pip; }
	@$(BIN)/python -m pip --quiet install -c constraints.txt -e ".[dev,docs]"
	@touch $@

demo: $(STAMP)
	@$(BIN)/curvops report --out $(OUT)
	@echo "Open $(abspath $(OUT))/index.html"

test: $(STAMP)
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The peers are installed only here: nothing else needs them.
bench: $(STAMP)
	@$(BIN)/python -m pip --quiet install -c constraints.txt -e ".[bench]"
	@$(BIN)/python -m benchmarks

docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(OUT) site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
