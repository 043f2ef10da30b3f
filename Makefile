# A few targets; everything else is the `polytrace` command.
PYTHON ?= python3
BIN := .venv/bin
# uv does not read pip's find-links; passing them on lets a local wheel folder serve both.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: demo test test-quick test-long lint docs

demo: .venv/ready
	$(BIN)/polytrace demo

# A file of tests is run by one of two processes, whose threads would only wait for each other's.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/ready
	$(PYTEST)

test-quick: .venv/ready
	$(PYTEST) -m 'not slow and not long'

test-long: .venv/ready
	$(BIN)/pytest -m long

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
