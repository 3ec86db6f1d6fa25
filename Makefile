# Two commands: `make quickstart` and `make test`. Everything lives in .venv, but for what pip and uv keep in their caches.
# A Python 3.11 or 3.12; without it, the first that runs.
PYTHON ?=
BIN := .venv/bin
FRESH ?=
INSTALL := python3 -m requirements.install $(if $(PYTHON),--python $(PYTHON))

AXE := tests/axe/node_modules/.package-lock.json

.PHONY: quickstart test check unit real gpu chaos docs lock clean

quickstart: .venv/cpu
	$(BIN)/proxykd run configs/quickstart.yaml $(if $(FRESH),--fresh)

test: check unit real

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# A process a core, each with its own files: most of a test's time is one thread's.
unit: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -n logical --maxprocesses 4 --dist loadfile

# Two files side by side, since a test waits for starts and ends as long as it works; those that fill a machine by themselves, alone.
real: .venv/dev $(AXE)
	$(BIN)/python -m pytest tests/real -m "not alone" -n 2 --dist loadfile --durations=15
	$(BIN)/python -m pytest tests/real -m alone --durations=15

# What judges the pages' accessibility, at the version and hash of its lock; without npm its test is skipped.
$(AXE): tests/axe/package-lock.json
	@if command -v npm > /dev/null; then npm ci --prefix tests/axe --ignore-scripts --no-audit --no-fund; else echo "no npm: axe-core does not judge the pages"; fi

# What only a GPU shows, in ten minutes: needs no lock, but torch and the wheels that tests/gpu/README.md names. OUT=FOLDER
# keeps the figures.
gpu:
	PYTHONPATH=.:$$PYTHONPATH python3 -m pytest -p no:cacheprovider --confcutdir=tests/gpu tests/gpu
	PYTHONPATH=.:$$PYTHONPATH python3 -m benchmarks.gpu $(if $(OUT),--out $(OUT))

# An hour, and not part of `make test`: every part of a run killed at every stage. Goes on where it was cut off.
chaos: .venv/dev
	$(BIN)/python -m tests.chaos.matrix $(if $(FRESH),--fresh)

# docs/configuration.md, from the descriptions in proxykd/config.
docs: .venv/cpu
	$(BIN)/proxykd config reference > docs/configuration.md

lock: .venv/cpu
	$(BIN)/python -m requirements.lock

clean:
	rm -rf .venv runs

.venv/cpu: requirements/cpu.lock pyproject.toml
	$(INSTALL) cpu
	@touch $@

.venv/dev: .venv/cpu requirements/dev.lock
	$(INSTALL) dev
	@touch $@

# What benchmarks/step.py is compared with, and what tests/real/test_trl.py has learn from the service.
.venv/bench: .venv/cpu requirements/bench.lock
	$(INSTALL) bench
	@touch $@
