# Every step of the project. All targets work from a fresh clone: they first make .venv, a virtual
# environment inside the checkout. Nothing outside the checkout is installed or changed.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3 python 2>/dev/null))
# On shared cores one thread per process is faster than several that wait for each other.
THREADS := OMP_NUM_THREADS=1

.PHONY: setup lint types test slow demo gpu

setup: $(READY)

$(READY): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -W ignore -c 'import fairseq, hypothesis, ofa_exit, pytest, ruff' 2> /dev/null || \
		$(BIN)/python -m pip install --disable-pip-version-check -e ".[test]"
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# Two processes. Tests of one file stay together, since they share fixtures.
test: $(READY)
	$(THREADS) $(BIN)/pytest -n 2 --dist loadfile $(PYTEST_ARGS)

slow: $(READY)
	$(THREADS) $(BIN)/pytest -m slow $(PYTEST_ARGS)

demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(THREADS) bash run_scripts/emoji/demo.sh

# Without setup: any Python that has the packages will do, and there may be no network. A PYTHON of
# the user's goes before .venv, the default above does not.
gpu:
	DEVICE="$(or $(DEVICE),cuda)" PYTHON="$(if $(filter-out file,$(origin PYTHON)),$(PYTHON))" \
		bash run_scripts/gpu.sh
