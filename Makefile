# `make demo` and `make test` work from a clean clone: they need Python >= 3.10 and a package index, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := build/demo

.PHONY: demo test test-slow fuzz lint types clean

demo: $(STAMP)
	@mkdir -p $(DEMO)
	$(BIN)/prunecli prune sample_models/digits_resnet/model.safetensors --method taylor-fo --keep 0.5 --out $(DEMO) --force

test: $(STAMP)
	$(BIN)/python -m pytest -n auto

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n auto -m "not nightly"

fuzz: $(STAMP)
	PRUNECLI_FUZZ_SEED=random $(BIN)/python -m pytest -n auto -m nightly tests/hostile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment for everything; installed again only when the dependencies change.
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing prunecli and its dependencies into $(VENV) (the first run takes a few minutes)..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@
