# make app    set up .venv and start the workbench on this machine only
# make app-cluster  the same with worker processes: one per GPU, two on a CPU (docs/scale.md)
# make test   set up what the tests need and run them all
# make test-machines  the numerical tests as on processors without AVX-512 or AVX2, with one and two threads
# make check  lint, format, types, unused code, complexity, known vulnerabilities, licences
# make attack  hostile files, hosts, kills and full disks against this checkout, on loopback: ten minutes
# make soak    twenty people on one server for an hour: memory, handles, threads and jobs (MINUTES=60)
# make siege   two servers and the command line on one cache, killed at random for ten minutes
# make house  the layout against its limits: modules, lengths, parameters, cycles, unused code
# make screenshots  photograph every page into docs/screenshots (makes its edits first: minutes)
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	&& { echo $$p; break; }; done)
endif
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8501
TESTS ?= tests
WORKERS ?= 2

.PHONY: app app-cluster test test-machines screenshots check house lock audit attack soak siege format chromium clean help

help:
	@sed -n '1,10p' Makefile

$(BIN)/python:
	@echo "Making a Python environment in $(VENV) ..."
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 was found. Install one, or name it: make app PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) lacks the venv module; on Debian and Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv --without-pip $(VENV)

$(VENV)/.app: $(BIN)/python requirements.txt
	@$(BIN)/python tools/install.py requirements.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.app requirements-dev.txt
	@$(BIN)/python tools/install.py requirements-dev.txt
	@touch $@

app: $(VENV)/.app
	@$(BIN)/python -m workbench app --port $(PORT)

$(VENV)/.ray: $(VENV)/.app requirements-dev.txt
	@$(BIN)/python -m pip install --quiet $$(sed -n 's/^\(ray\[client\]==[^ ]*\).*/\1/p' requirements-dev.txt)
	@touch $@

app-cluster: $(VENV)/.ray
	@WORKBENCH_WORKERS=$${WORKBENCH_WORKERS:-ray} $(BIN)/python -m workbench app --port $(PORT)

chromium: $(VENV)/.dev
	@sh tools/ensure_chromium.sh $(BIN)/python

test: $(VENV)/.dev chromium
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

test-machines: $(VENV)/.dev
	$(BIN)/python tools/test_machines.py

screenshots: $(VENV)/.dev chromium
	$(BIN)/python tools/screenshots.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/vulture
	@test -z "$$($(BIN)/radon cc workbench benchmarks training -n E -e training/vae_train.py | tee /dev/stderr)"
	$(BIN)/python tools/audit.py

house: $(VENV)/.dev
	$(BIN)/python tools/house.py --lines

lock: $(VENV)/.dev
	$(BIN)/python tools/lock.py

audit: $(VENV)/.dev
	$(BIN)/python tools/audit.py

attack: $(VENV)/.dev
	$(BIN)/python -W ignore tools/attack.py

soak: $(VENV)/.dev
	$(BIN)/python tools/soak.py --minutes $(or $(MINUTES),60)

siege: $(VENV)/.dev
	$(BIN)/python tools/siege.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
