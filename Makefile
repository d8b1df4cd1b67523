# Everything a person does with a checkout. Needs Python 3.11-3.13, make and PyPI.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup dev test lint bench lock clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"Python {v[0]}.{v[1]} found: this needs 3.11 to 3.13; say which with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $(STAMP)

dev: setup
	$(BIN)/lakerunner dev

test: setup lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadgroup --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m bench

# Pins every package for every supported Python, with hashes and without any registry's address.
lock: setup
	$(BIN)/uv pip compile --universal --no-strip-extras --python-version 3.11 --group dev --all-extras pyproject.toml \
		--generate-hashes --no-header --quiet -o requirements.lock

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
