# Targets: venv run test test-slow lint clean.  Settings: PYTHON, VENV, STACK (current or old).

PYTHON ?= python3
VENV ?= .venv
# numpy 2.4, pandas 3 and scipy 1.17 need Python 3.11.
STACK ?= $(shell $(PYTHON) -c 'import sys; print("current" if sys.version_info >= (3, 11) else "old")')

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINS := constraints/$(STACK).txt
STAMP := $(VENV)/.installed-$(STACK)

# Two test processes that each start a thread per core get in each other's way.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: venv run test test-slow lint clean

venv: $(STAMP)

$(STAMP): $(PINS) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.installed-*
	$(PIP) install -c $(PINS) torch setuptools
ifeq ($(STACK),old)
# The way RecBole documents, which takes ray along.
	$(PIP) install -c $(PINS) recbole
	$(PIP) install -c $(PINS) --no-build-isolation -e '.[dev]'
else
# With dependencies pip would take ray along on Python 3.11 and find no RecBole on 3.12.
	$(PIP) install -r $(PINS)
	$(PIP) install --no-deps recbole==1.2.1
	$(PIP) install --no-deps --no-build-isolation -e .
endif
	touch $@

run: venv
	$(BIN)/python benchmarks/demo.py

test: venv
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: venv
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-old build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
