# The verbs. Each builds the environment first where it is not there; nothing is done twice. On Windows: run.ps1.
.PHONY: help demo test check environment lock

BIN := .venv/bin
# The first Python of 3.11 to 3.13 that can make an environment.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; done)

help:
	@echo "make demo         the whole pipeline on data made from real handwriting: a table of results and a report"
	@echo "make test         every test"
	@echo "make check        style, types, imports, fast tests"
	@echo "make environment  build .venv from requirements.lock"
	@echo "make lock         write requirements.lock anew from pyproject.toml"

environment:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 with venv was found. Install one (on Debian and Ubuntu:" \
		"apt install python3 python3-venv), or say where it is: make PYTHON=/path/to/python3 environment" >&2; exit 1; }
	@$(PYTHON) cli/environment.py

demo: environment
	@git rev-parse --git-dir >/dev/null 2>&1 || git init --quiet
	@test -d .dvc || $(BIN)/dvc init --quiet
	@echo "demo: download, parse, prepare, plan, train, evaluate, export, quantize, report, publish; some minutes on two cores"
	@$(BIN)/slipway run segmentation

# Three processes: while one waits for a server or for ranks, two cores are still busy.
test: environment
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal $(ARGS)

check: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

lock: environment
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header --quiet --output-file requirements.lock
