# Two commands for a fresh machine with Python, git and make: `make demo`, `make test`.

PYTHON ?= python3
BIN := .venv/bin
# One install for users, one with what the tests and checks need; each redone when the
# package's metadata or the pinned versions change.
INSTALLED := .venv/.installed
INSTALLED_DEV := .venv/.installed-dev

.PHONY: demo test check format clean

demo: $(INSTALLED)
	$(BIN)/bptt train --minutes 1

test: $(INSTALLED_DEV)
	$(BIN)/pytest

check: $(INSTALLED_DEV)
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED_DEV)
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable .
	touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable ".[dev]"
	touch $(INSTALLED) $@
