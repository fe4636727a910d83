# Every target makes its own environment from pyproject.toml when that is missing or has changed.
PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/.made-from-pyproject
BIN := $(VENV)/bin
SOURCE := $(VENV)/transformers-source

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
	# The wheel of transformers lacks its common tests, which tests/test_transformers_common.py runs: fetch its source.
	# Without it they are skipped, with that reason.
	version=$$($(BIN)/python -c "import transformers; print(transformers.__version__)"); \
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --no-build-isolation --dest $(SOURCE) \
		transformers==$$version && $(BIN)/python -m tarfile --extract $(SOURCE)/*.tar.gz $(SOURCE) \
		|| echo "the source of transformers $$version could not be fetched"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
