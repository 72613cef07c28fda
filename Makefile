# Every target sets itself up: only Python 3.11 or later and make are needed. Another Python has an environment of its
# own: make test PYTHON=python3.13 uses .venv-3.13.
PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
BIN := $(VENV)/bin
# Whether to install the originals, torch among them. With PARITY=no, tests that compare to them skip, and types are not
# checked, since some programs of tools/ import torch.
PARITY ?= yes
ORIGINALS := $(if $(filter yes,$(PARITY)),$(VENV)/.parity)

.PHONY: test test-all lint demo demo-training bench docs clean
test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# With the slow variants (every precision and mesh of what make test shows on one, the guide's runs), and with programs
# compiled as users have them, where make test saves the time of optimising them.
test-all: lint
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(ORIGINALS),$(BIN)/pyright --pythonpath $(BIN)/python)

demo: $(VENV)/.demo
	$(BIN)/python tools/demo.py

# The pages as a site in build/site: a dead link or a page outside of the menu is an error. Its diagrams need npm.
docs: $(VENV)/.docs
	npm ci --silent --prefix docs/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml

# A twentieth of the scenes and steps of every run that made the shipped model; SHARE=1 runs all of it.
SHARE ?= 0.05
demo-training: $(VENV)/.data
	$(BIN)/python tools/demo_training.py --share $(SHARE)

bench: $(VENV)/.test $(VENV)/.parity
	$(BIN)/python tools/bench models --write docs/benchmarks.md
	$(BIN)/python tools/bench data --write docs/benchmarks.md

$(VENV)/.test: pyproject.toml $(VENV)/.demo $(ORIGINALS)
	$(BIN)/python -m pip install --quiet -e '.[data,test,lint]'
	touch $@

# torch goes first and alone, pinned, so that no other package pulls in a CUDA build.
$(VENV)/.parity: pyproject.toml $(VENV)/.demo
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e '.[parity]'
	touch $@

$(VENV)/.data: pyproject.toml $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -e '.[data]'
	touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

$(VENV)/.demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
