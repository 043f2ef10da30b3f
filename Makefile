# A few targets; everything else is the `polytrace` command.
PYTHON ?= python3
BIN := .venv/bin
# uv does not read pip's find-links; passing them on lets a local wheel folder serve both.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: demo test test-quick test-long lint docs

demo: .venv/ready
	$(BIN)/polytrace demo

# Two processes, each of which runs a file of tests as a whole; more threads than these would wait for each other. Many
# tests start processes of their own, which must not compile again what others have imported before, so bytecode is kept.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/ready
	$(PYTEST)

test-quick: .venv/ready
	$(PYTEST) -m 'not slow and not long'

test-long: .venv/ready
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -m long

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/docs
	$(BIN)/mkdocs build --strict

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

.venv/docs: .venv/ready
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet -e '.[docs]' -c constraints.txt
	touch $@
