# make app    set up .venv and start the workbench on this machine only
# make test   set up what the tests need and run them all
# make check  lint, format and types
# make house  the layout against its limits: modules, lengths, parameters, cycles, unused code
# make screenshots  photograph every page into docs/screenshots (makes its edits first: minutes)
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	&& { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8501
TESTS ?= tests
WORKERS ?= 2

.PHONY: app test screenshots check house format chromium clean help

help:
	@sed -n '1,5p' Makefile

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 was found. Install one, or name it: make app PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) lacks the venv module; on Debian and Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch goes first: on a machine that has a CPU build at hand this keeps the resolver from replacing it
$(VENV)/.app: $(BIN)/python requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $$(grep '^torch==' requirements.txt)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.app requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	@touch $@

app: $(VENV)/.app
	@$(BIN)/python -m workbench app --port $(PORT)

chromium: $(VENV)/.dev
	@sh tools/ensure_chromium.sh $(BIN)/python

test: $(VENV)/.dev chromium
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

screenshots: $(VENV)/.dev chromium
	$(BIN)/python tools/screenshots.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

house: $(VENV)/.dev
	$(BIN)/python tools/house.py --lines

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
