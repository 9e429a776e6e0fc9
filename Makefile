# From a clone to a book: `make reproduce`. Checks: `make test`. Everything else: `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PY := $(VENV)/bin/python

.PHONY: help setup reproduce book test test-all cluster clean

help: ## this list
	@printf 'make TARGET, where TARGET is one of\n'
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' Makefile | expand -t 16
	@printf 'Options: PYTHON=python3.12 (3.11 to 3.13), VENV=folder, JOBS=notebooks at a time\n'

# ---- set-up: a virtual environment, the pinned requirements, the package -------------------------------------------
CHECK_PYTHON := import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	"%s is Python %d.%d, but vaegap needs 3.11, 3.12 or 3.13. Cure: make PYTHON=python3.12 ..., and if there is a folder \
	$(VENV) of another Python, remove it." % (sys.executable, v[0], v[1]))

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo 'There is no "$(PYTHON)" here. Cure: install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=/path/to/python3.12' >&2; exit 1; }
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	@echo "== set-up 1/3: virtual environment $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.requirements: requirements.txt constraints.txt | $(VENV)/bin/python
	@$(PY) -c '$(CHECK_PYTHON)'
	@echo "== set-up 2/3: requirements.txt under constraints.txt (minutes on the first time; PyTorch is large)"
	$(PY) -m pip install --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $@

$(VENV)/.package: pyproject.toml $(VENV)/.requirements
	@echo "== set-up 3/3: the package vaegap"
	$(PY) -m pip install --disable-pip-version-check --no-deps --editable .
	@touch $@

setup: $(VENV)/.package ## only the virtual environment

# ---- the book ------------------------------------------------------------------------------------------------------
reproduce: $(VENV)/.package ## run every notebook in the quick profile on this machine, build the book, print what was measured
	@echo "== notebooks: the quick profile, computed on this machine"
	@$(PY) workflow/render.py --profile quick --jobs $(JOBS)
	@$(MAKE) html
	@$(PY) workflow/report.py
	@echo "The book: file://$(CURDIR)/_build/html/index.html"

book: $(VENV)/.package ## build the book from the committed records
	@$(PY) workflow/render.py --jobs $(JOBS)
	@$(MAKE) html
	@echo "The book: file://$(CURDIR)/_build/html/index.html"

# Built again only when a page, a notebook's copy or a docstring has changed. `make` looks at the files at its start, so this is
# always a `make` of its own, after the notebooks have run.
PAGES = $(shell find -L _config.yml _toc.yml book vaegap workflow _build/source/notebooks _build/source/extra _build/source/generated -type f -not -path '*/__pycache__/*' 2>/dev/null)

.PHONY: html pdf test-browser
html: _build/html/.built

# An extra: the same pages on one, printed by Chromium (no LaTeX). CHROMIUM=/path/to/it names another one.
CHROMIUM ?= $(firstword $(shell command -v chromium chromium-browser google-chrome 2>/dev/null))
pdf: $(VENV)/.package ## an extra: the book as one PDF file; needs Chromium
	@[ -n '$(CHROMIUM)' ] || { echo 'make pdf prints with Chromium, which is not on the PATH. Cure: install it, or make pdf CHROMIUM=/path/to/chromium' >&2; exit 1; }
	@$(PY) workflow/render.py --jobs $(JOBS)
	@$(VENV)/bin/jupyter-book build _build/source --path-output _build/pdf --builder custom --custom-builder singlehtml --all -n --keep-going --quiet
	@cp _build/pdf/_build/singlehtml/book/intro.html _build/pdf/_build/singlehtml/print.html # its links start there
	@'$(CHROMIUM)' --headless --no-sandbox --disable-gpu --no-pdf-header-footer --virtual-time-budget=120000 \
	  --print-to-pdf=_build/vaegap.pdf "file://$(CURDIR)/_build/pdf/_build/singlehtml/print.html" 2>/dev/null
	@echo "The book: $(CURDIR)/_build/vaegap.pdf"

_build/html/.built: $(PAGES)
	@echo "== book: from the executed notebooks to HTML, every warning an error"
	@$(VENV)/bin/jupyter-book build _build/source --path-output . --all -W -n --keep-going --quiet
	@touch $@

# ---- checks --------------------------------------------------------------------------------------------------------
# nbval runs a notebook with its defaults, so in the quick profile. Two of them compute all that the others build on; the rest
# take minutes each and are for `make test-all` (the book shows them from their records, and fails if one of them does).
NOTEBOOKS := notebooks/quickstart.ipynb notebooks/posterior_2d.ipynb
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --nbval-lax --nbval-cell-timeout 600

test: $(VENV)/.package ## ruff, mypy and all quick tests, the first notebooks and the examples in docstrings among them
	@status=0; set -x; \
	$(VENV)/bin/ruff check . || status=1; \
	$(VENV)/bin/mypy || status=1; \
	$(PYTEST) tests vaegap $(NOTEBOOKS) || status=1; \
	set +x; exit $$status

test-all: $(VENV)/.package ## all tests, the slow ones too, and every notebook in the quick profile
	$(PYTEST) -m 'slow or not slow' tests vaegap notebooks

test-browser: ## open the built book in headless Chromium: errors, accessibility, the posterior explorer; installs what it needs
	@bash tests/browser/run.sh

cluster: .venv-cluster/.requirements ## an extra: Snakemake and its SLURM executor, in .venv-cluster

.venv-cluster/.requirements: requirements-cluster.txt
	$(PYTHON) -m venv .venv-cluster
	.venv-cluster/bin/python -m pip install --disable-pip-version-check --quiet -r requirements-cluster.txt
	@touch $@

clean: ## remove what was built, and the records of quick runs; keep the virtual environment and all other records
	rm -rf _build results/*-quick-* .mypy_cache .ruff_cache .pytest_cache .hypothesis
