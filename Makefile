# Every target sets itself up: only Python (3.11, 3.12 or 3.13) and make are needed. Another Python has an environment of
# its own: make test PYTHON=python3.13 uses .venv-3.13.
PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
BIN := $(VENV)/bin

# Programs are started by the hundred: their bytecode is kept, whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: test test-fast test-rest test-all test-slow lint demo demo-training bench docs lock clean
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
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyright --pythonpath $(BIN)/python

demo: $(VENV)/.demo
	$(BIN)/python tools/demo.py

# The pages as a site in build/site: a dead link or a page outside of the menu is an error. Its diagrams need npm.
docs: $(VENV)/.docs
	npm ci --silent --prefix docs/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

# A twenty-fifth of the scenes and steps of every run of the demonstration model, and less of those at 128 pixels;
# SHARE=1 runs all of it.
SHARE ?= 0.04
demo-training: $(VENV)/.data
	$(BIN)/python tools/demo_training.py --share $(SHARE)

bench: $(VENV)/.test
	$(BIN)/python tools/bench models --write docs/benchmarks.md
	$(BIN)/python tools/bench data --write docs/benchmarks.md

# uv takes a fifth of pip's time. It does not read what pip is configured with: where it finds nothing, pip may.
install = $(BIN)/uv pip install --quiet --python $(BIN)/python $(1) $(2) || \
	$(BIN)/python -m pip install --quiet $(2)

# The lock has all but torch, whose right build depends on the machine. PARITY=no leaves it out: tests that compare to the
# originals skip.
PARITY ?= yes
$(VENV)/.test: pyproject.toml tests/requirements.txt | $(BIN)/uv
	$(if $(filter yes,$(PARITY)),$(call install,--torch-backend cpu,torch==2.13.0))
	$(call install,,--no-deps --require-hashes -r tests/requirements.txt)
	$(call install,,--no-deps -e .)
	touch $@

$(VENV)/.data: pyproject.toml $(VENV)/.demo
	$(call install,,-e '.[data]')
	touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.demo
	$(call install,,-e '.[docs]')
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
