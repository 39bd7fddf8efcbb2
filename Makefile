# `make demo` trains networks jointly and with AGM on the bundled data and compares them; `make test` runs the tests,
# `make test-fast` the fast ones; `make docs` builds the site; `make bench-check` measures whether the bounds of
# bench/thresholds.toml hold. They set up everything they need in .venv. PYTHON=... chooses the interpreter (3.11 or newer).

PYTHON ?= python3
SOAK ?= 40
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
NATIVE := $(shell find csrc -type f) setup.py pyproject.toml

.PHONY: demo test test-fast docs soak lint format bench-check clean

demo: .venv/agm
	@echo "Joint training against AGM on the bundled AV-Digits, three seeds each:"
	$(BIN)/agm compare --dataset av-digits --methods joint,agm --epochs 30 --seeds 3 --jobs 2 --out runs/demo
	@echo "Next:"
	@echo "  $(BIN)/agm report runs/demo                      one page: table, pictures, curves"
	@echo "  $(BIN)/agm evaluate runs/demo/agm-seed0          what each modality contributes"
	@echo "  $(BIN)/agm train --dataset mine.npz              your own data: one array a modality, target, split"
	@echo "  $(BIN)/agm --help                                everything else"

test: .venv/test
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# What has no need of a build, a process of its own, or a long training: under 90 seconds on two cores.
test-fast: .venv/test
	$(BIN)/python -m pytest -m fast --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# The site, in site/: a link that leads nowhere or a symbol that is missing ends it.
docs: .venv/docs
	$(BIN)/python docgen
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

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
	rm -rf .venv build dist site *.egg-info agm/*.so agm/_native.txt bench/out

.venv/requirements: requirements.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv, 1.2 GB in all:" $$(grep -o '^[^#][^;]*' requirements.txt)
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

.venv/docs: .venv/agm requirements-docs.txt
	$(PIP) --requirement requirements-docs.txt
	touch $@
