# Each target does its own set-up.
PYTHON ?= python3
BIN := .venv/bin

BASE ?= a828d3c
HEAD ?= WORKTREE

.PHONY: train test test-all stress golden format clean

train: .venv/.installed
	$(BIN)/python scripts/train.py --dataset auto --epochs 24

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m 'not slow'

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
