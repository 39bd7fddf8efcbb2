# `make demo` trains a network with AGM on the bundled data; `make test` runs the tests; `make bench-check` measures
# whether the bounds of bench/thresholds.toml hold. They set up everything they need in .venv. PYTHON=... chooses the
# interpreter (3.11 or newer).

PYTHON ?= python3
SOAK ?= 40
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
NATIVE := $(shell find csrc -type f) setup.py pyproject.toml

.PHONY: demo test soak lint format bench-check clean

demo: .venv/agm
	$(BIN)/agm train --dataset av-digits --fusion late --method agm --alpha 1.5 --epochs 40 --seed 0

test: .venv/test
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# Kills, interrupts, full disks and spoiled files, many times as many as among the tests: some twenty minutes.
soak: .venv/test
	AGM_SOAK=$(SOAK) $(BIN)/python -m pytest tests/faults

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.h' -o -name '*.cpp' -o -name "*.cu" -o -name "*.cuh" | xargs $(BIN)/clang-format --dry-run --Werror

format: .venv/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.h' -o -name '*.cpp' -o -name "*.cu" -o -name "*.cuh" | xargs $(BIN)/clang-format -i

# Measures for some minutes: nothing else should run meanwhile.
bench-check: .venv/test
	$(BIN)/python bench check --rounds 9

clean:
	rm -rf .venv build dist *.egg-info agm/*.so agm/_native.txt bench/out

.venv/requirements: requirements.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .venv
	$(PIP) --requirement requirements.txt
	touch $@

# Without build isolation, so that the native library is built against this torch. Where there is no compiler the
# same command installs pure Python, and `agm info` says so.
.venv/agm: .venv/requirements $(NATIVE)
	$(PIP) --no-build-isolation --no-deps --editable .
	touch $@

.venv/test: .venv/agm requirements-test.txt
	$(PIP) --requirement requirements-test.txt
	touch $@
