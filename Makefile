# Two commands do everything, set-up included, on a machine that has only Python 3.11+ and make:
#   make demo    the whole experiment, offline, on a fictional newsroom
#   make test    every test
#   make bench   train.py beside transformers' Trainer: hours on a CPU; one row of it: make bench-small
#   make bench-growth   how its cost grows with the context and the model
# TORCH_INDEX picks another build of torch, for example
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TORCH_INDEX ?=
VENV = .venv
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet

.PHONY: demo test lint bench bench-growth clean

demo: $(VENV)/run-time
	$(VENV)/bin/python -m nanoprune.demo $(DEMO)

test: $(VENV)/development
	$(VENV)/bin/python -m pytest $(or $(TESTS),-n 2 --dist worksteal)

lint: $(VENV)/development
	$(VENV)/bin/ruff check .

bench: $(VENV)/development
	$(VENV)/bin/python -m benchmarks.train $(BENCH)

bench-growth: $(VENV)/run-time
	$(VENV)/bin/python -m benchmarks.growth $(BENCH)

bench-%: $(VENV)/development
	$(VENV)/bin/python -m benchmarks.train $* $(BENCH)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "nanoprune needs Python 3.11 or newer; none was found. Give one: make demo PYTHON=/path/to/python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The stamp files say what is installed: a second run installs nothing, a changed pin installs again.
$(VENV)/run-time: requirements.txt | $(VENV)/bin/python
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) $$(grep '^torch==' requirements.txt))
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/development: requirements-dev.txt $(VENV)/run-time
	$(PIP) -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV)
