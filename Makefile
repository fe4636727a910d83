# Every target makes its own environment from pyproject.toml when that is missing or has changed.
PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/.made-from-pyproject
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint format clean

demo: $(STAMP)
	$(BIN)/music2vec demo --output demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
