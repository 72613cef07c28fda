# Every target sets itself up: only Python (3.11, 3.12 or 3.13) and make are needed. PYTHON=python3.13 takes another one.
PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(shell $(PYTHON) -c "import platform; print(platform.python_version())"))
BIN := $(VENV)/bin

# Programs are started by the hundred: their bytecode is kept, whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: test test-fast test-rest test-all test-slow lint demo demo-training bench lock clean
# Lint, types, and what proves each promise once (docs/testing.md).
test: lint test-fast

# Everything once.
test-all: test test-rest

PYTEST = $(BIN)/python -m pytest -n 2 --dist worksteal
test-fast: $(VENV)/.test
	$(PYTEST) -m "not full and not slow"

test-rest: $(VENV)/.test
	$(PYTEST) -m "full and not slow"

# With the slow variants (every precision and mesh of what test-all shows on one, the guide's runs), and all programs
# compiled as users have them, where the other targets save the time of optimising them.
test-slow: $(VENV)/.test
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

demo: $(VENV)/.demo
	$(BIN)/python tools/demo.py

# A twentieth of the scenes and steps of every run that made the shipped model; SHARE=1 runs all of it.
SHARE ?= 0.05
demo-training: $(VENV)/.data
	$(BIN)/python tools/demo_training.py --share $(SHARE)

bench: $(VENV)/.test
	$(BIN)/python tools/bench models --write docs/benchmarks.md
	$(BIN)/python tools/bench data --write docs/benchmarks.md

# uv takes a tenth of pip's time. It does not read what pip is configured with: where it finds nothing, pip may.
install = $(BIN)/uv pip install --quiet --python $(BIN)/python $(1) $(2) || \
	$(BIN)/python -m pip install --quiet $(2)

# torch is no part of the lock: which build is right depends on the machine. TORCH=no leaves it and its tests out.
TORCH ?= torch==2.13.0
$(VENV)/.test: pyproject.toml tests/requirements.txt | $(BIN)/uv
ifneq ($(TORCH),no)
	$(call install,--torch-backend cpu,$(TORCH))
endif
	$(call install,,--no-deps --require-hashes -r tests/requirements.txt)
	$(call install,,--no-deps -e .)
	touch $@

$(VENV)/.data: pyproject.toml $(VENV)/.demo
	$(call install,,-e '.[data]')
	touch $@

$(VENV)/.demo: pyproject.toml | $(BIN)/uv
	$(call install,,-e .)
	touch $@

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

# The versions that the tests run with, for every Python and system.
lock: $(BIN)/uv
	mkdir -p build && echo "torch ; python_version < '3'" > build/no_torch.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --upgrade \
		--custom-compile-command "make lock" --overrides build/no_torch.txt --no-emit-package torch \
		--extra data --extra test --extra parity --extra lint --extra docs pyproject.toml -o tests/requirements.txt

clean:
	rm -rf .venv* build *.egg-info
