# Each target does its own set-up.
PYTHON ?= python3
BIN := .venv/bin

BASE ?= a828d3c
HEAD ?= WORKTREE

.PHONY: train test test-unit test-commands test-all stress golden format clean

train: .venv/.installed
	$(BIN)/python scripts/train.py --dataset auto --epochs 24

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs=2 test-unit test-commands

# The two halves of the tests, side by side: a thread each, so that they do not wait for each other.
test-unit:
	$(BIN)/python -m pytest -m 'not slow' --ignore=tests/cli --ignore=tests/integration

test-commands:
	$(BIN)/python -m pytest -m 'not slow' tests/cli tests/integration

test-all: test
	$(BIN)/python -m pytest -m slow

stress: .venv/.installed
	$(BIN)/python -m tests.stress --output results/reliability.json

golden: .venv/.installed # make golden BASE=main HEAD=WORKTREE
	$(BIN)/python -m tests.golden $(BASE) $(HEAD)

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
