# Two commands for a fresh machine with Python, git and make: `make demo`, `make test`.

PYTHON ?= python3
BIN := .venv/bin
# One install for users, one with what the tests and checks need; each redone when the
# package's metadata, the pinned versions or the native core change.
INSTALLED := .venv/.installed
INSTALLED_DEV := .venv/.installed-dev
SOURCES := pyproject.toml constraints.txt CMakeLists.txt \
  $(wildcard src/bptt/kernels/csrc/*)

.PHONY: demo test soak mutants check native sanitize format clean

demo: $(INSTALLED)
	$(BIN)/bptt train --minutes 1

# In two processes, each of one thread unless a test asks for more.
test: $(INSTALLED_DEV)
	$(BIN)/pytest -n 2

# Kills, damage, wrong arguments and many windows, by the thousand: twenty minutes.
# SHARE=0.05 for a quick look.
SHARE ?= 1
soak: $(INSTALLED_DEV)
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak --share $(SHARE)

# Wrong derivatives, off-by-one windows, swapped gates, one by one: a test fails for each.
# Needs cmake. ONLY=gru for those with that in their file's name or their words.
mutants: $(INSTALLED_DEV)
	$(BIN)/python tests/soak/mutants.py --only "$(ONLY)"

check: $(INSTALLED_DEV)
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The kernels and their memory in C++ programs; `sanitize` runs them under the address,
# undefined-behaviour and thread sanitizers, in some six minutes. Both need cmake.
native:
	cmake -S . -B build/native -DBPTT_TESTS=ON -DCMAKE_BUILD_TYPE=None \
	  -DCMAKE_CXX_FLAGS=-O1
	cmake --build build/native --parallel 2
	build/native/test_blocks && build/native/test_lags && build/native/test_kernels

sanitize:
	for kind in address,undefined thread; do \
	  cmake -S . -B build/$$kind -DBPTT_TESTS=ON -DCMAKE_BUILD_TYPE=Debug \
	    -DCMAKE_CXX_FLAGS="-O1 -g -fsanitize=$$kind -fno-sanitize-recover=all" && \
	  cmake --build build/$$kind --parallel 2 && \
	  build/$$kind/test_blocks && build/$$kind/test_lags && \
	    build/$$kind/test_kernels || exit 1; \
	done

format: $(INSTALLED_DEV)
	$(BIN)/ruff format src tests benchmarks examples
	$(BIN)/ruff check --fix src tests benchmarks examples

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): $(SOURCES)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable .
	touch $@

$(INSTALLED_DEV): $(SOURCES)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable ".[dev]"
	touch $(INSTALLED) $@
