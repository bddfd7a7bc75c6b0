# Bare `make` lists the targets. PYTHON chooses the interpreter; DATA and WEIGHTS point the demo at real images.
PYTHON ?= python3
# one exact torch, so that a CPU build is taken where the machine offers one
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out

.PHONY: help venv demo test check lint types imports clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: setup.cfg pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,dev]'
	@touch $@

venv: $(VENV)/.installed ## make .venv and install everything

demo: venv ## train, calibrate and replay a station; DATA=DIR for your own images
	$(BIN)/python -m benchmarks.demo --out $(OUT) $(if $(DATA),--data $(DATA)) $(if $(WEIGHTS),--weights $(WEIGHTS))

test: venv ## run the tests
	$(BIN)/python -m pytest

lint: venv ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv ## mypy
	$(BIN)/mypy

imports: venv ## import contracts
	$(BIN)/lint-imports --config setup.cfg

check: lint types imports test ## lint, types, import contracts, tests

clean: ## remove .venv and what the demo wrote
	rm -rf $(VENV) $(OUT) build *.egg-info
