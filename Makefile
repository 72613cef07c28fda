# Every target sets itself up: only Python 3.11 and make are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: test test-all lint demo demo-training bench clean
test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# With the slow variants (every precision and mesh of what make test shows on one, the guide's runs), and with programs
# compiled as users have them, where make test saves the time of optimising them.
test-all: lint
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

demo: $(VENV)/.demo
	$(BIN)/python tools/demo.py

# A twenty-fifth of the scenes and steps of every run of the demonstration model, and less of those at 128 pixels;
# SHARE=1 runs all of it.
SHARE ?= 0.04
demo-training: $(VENV)/.data
	$(BIN)/python tools/demo_training.py --share $(SHARE)

bench: $(VENV)/.test
	$(BIN)/python tools/bench models --write docs/benchmarks.md
	$(BIN)/python tools/bench data --write docs/benchmarks.md

# torch goes first and alone, pinned, so that no other package pulls in a CUDA build.
$(VENV)/.test: pyproject.toml $(VENV)/.demo
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e '.[data,test,lint]'
	touch $@

$(VENV)/.data: pyproject.toml $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -e '.[data]'
	touch $@

$(VENV)/.demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
