# Two targets do all the set-up: make train, make test.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test format clean

train: .venv/.installed
	$(BIN)/python scripts/train.py --dataset auto --epochs 24

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
