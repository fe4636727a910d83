# Every target makes its own environment from pyproject.toml when that is missing or has changed.
PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/.made-from-pyproject
BIN := $(VENV)/bin
SOURCE := $(VENV)/transformers-source
RESULTS := benchmarks/results
# Bytecode is written once; else every process of tests compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo docs test test-slow bench-gpu lint format clean

demo: $(STAMP)
	$(BIN)/music2vec demo --output demo

# One process of tests a core, each with one thread.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 4 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# All that only a GPU can say about speed, memory and precision, in at most a quarter of an hour: what to do next stands
# at the end of gpu.md. Each writes its file under benchmarks/results/.
bench-gpu: $(STAMP)
	@$(BIN)/python -c "import torch; torch.cuda.is_available() or \
		exit('make bench-gpu: there is no CUDA GPU here, or torch does not see it; nothing was run.')"
	$(BIN)/python benchmarks/gpu.py --limit 420 --output $(RESULTS)/gpu.md
	$(BIN)/python benchmarks/pretrain_step.py --device cuda --precision bf16 --compile --rows 47 \
		--output $(RESULTS)/pretrain_step_gpu_bf16.md
	$(BIN)/python benchmarks/memory.py --device cuda --output $(RESULTS)/memory_gpu.md
	$(BIN)/python benchmarks/embed.py --device cuda --clips 20 --output $(RESULTS)/embed_gpu.md
	$(BIN)/python benchmarks/probe.py --device cuda --output $(RESULTS)/probe_gpu.md

# The pages, with a reference made from docstrings and --help, into site/; a broken link is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python docs/prose.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	# Bytecode is written at the first import of what is used, not for all that torch brings along.
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev,docs]'
	# The wheel of transformers lacks its common tests, which tests/test_transformers_common.py runs: fetch its source.
	# Without it they are skipped, with that reason.
	version=$$($(BIN)/python -c "import transformers; print(transformers.__version__)"); \
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --no-build-isolation --dest $(SOURCE) \
		transformers==$$version && $(BIN)/python -m tarfile --extract $(SOURCE)/*.tar.gz $(SOURCE) \
		|| echo "the source of transformers $$version could not be fetched"
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
