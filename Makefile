# Two commands: `make quickstart` and `make test`. Everything lives in .venv; nothing else is touched.
PYTHON ?= python3.11
BIN := .venv/bin
FRESH ?=
# Exactly the locked versions: nothing is resolved on the way.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps

.PHONY: quickstart test check unit real chaos lock clean

quickstart: .venv/cpu
	$(BIN)/proxykd run configs/quickstart.yaml $(if $(FRESH),--fresh)

test: check unit real

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: .venv/dev
	$(BIN)/python -m pytest tests/unit

real: .venv/dev
	$(BIN)/python -m pytest tests/real --durations=15

# An hour, and not part of `make test`: every part of a run killed at every stage. Goes on where it was cut off.
chaos: .venv/dev
	$(BIN)/python -m tests.chaos.matrix $(if $(FRESH),--fresh)

lock: .venv/cpu
	$(BIN)/python requirements/lock.py

clean:
	rm -rf .venv runs

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/cpu: .venv/bin/python requirements/cpu.lock pyproject.toml
	@echo "installing the locked CPU dependencies (three minutes or so, 3 GB)"
	$(PIP) -r requirements/cpu.lock
	$(PIP) --no-build-isolation --editable .
	@$(BIN)/python -c "import torch, sys; sys.exit(torch.version.cuda and 'torch is a CUDA build; see docs/install.md for the CPU build')"
	@touch $@

.venv/dev: .venv/cpu requirements/dev.lock
	$(PIP) -r requirements/dev.lock
	@touch $@
