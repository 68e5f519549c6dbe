# The root toolchain: `make help` lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

include machine.mk
# Relative, because the path of the clone may contain spaces and dollar signs.
BIN := .venv/bin
PIPENV := PIPENV_VERBOSITY=-1 PIPENV_IGNORE_VIRTUALENVS=0 VIRTUAL_ENV="$$PWD/.venv" $(BIN)/python -m pipenv

# Style checks skip marked copies, because their style is that of their originals.
ORIGINALS := git grep --untracked -L '^\# Copied from ' -- '*.py'

PATTERNS := $(sort $(patsubst %/Makefile,%,$(wildcard chapter*/*/Makefile)))
PATTERN ?= web_single_pattern
# Empty unless there is a pattern of that name.
DIRECTORY = $(filter %/$(firstword $(PATTERN)),$(PATTERNS))
CHAPTER ?=
# The patterns whose tests `make test` runs or leaves out: names, `tools` or `everything`.
ONLY ?=
WITHOUT ?=
ARGS ?=
PROCESSES ?= 2
# How the tests are divided is in tools/check/side_by_side.py.
SIDE_BY_SIDE = --numprocesses=$(PROCESSES)
# The categories of the lock that `environment` installs; all of them if empty.
CATEGORIES ?=

.PHONY: help
help: ## Show this help
	@echo "ml-system-in-actions: every pattern runs, shows its claim and breaks on purpose."
	@echo
	@awk -F ':.*## ' '/^[a-z_]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PATTERN=$(PATTERN)       which pattern (make run, make measure)"
	@echo "  CHAPTER=chapter4_serving_patterns   which chapter (make test); default: all"
	@echo "  ONLY=\"tools model_db\"               which tests (make test); FULL=1 adds the slow ones"
	@echo "  RUN=docker|local                    with or without Docker; default: Docker if it runs"
	@echo
	@echo "In a pattern's directory, make lists the targets of that pattern."

.PHONY: run
run: pattern ## Play a pattern: set up, train, start, every command of its README, stop
	@$(MAKE) -C "$(DIRECTORY)" readme

.PHONY: pattern
pattern: # Fails unless PATTERN is the name of a pattern.
	@[ -n "$(DIRECTORY)" ] || { echo "error: there is no pattern $(PATTERN); choose one of:" >&2; \
	  printf '  %s\n' $(notdir $(PATTERNS)) >&2; exit 2; }

.PHONY: test
test: environment ## Run the tests; RUN=docker builds and runs every image and README with Docker
	@unset ARGS CHAPTER MAKEFLAGS MAKEOVERRIDES MFLAGS ONLY WITHOUT; $(BIN)/python -m pytest \
	  -m $(if $(filter docker,$(RUN)),docker,"not docker" $(SIDE_BY_SIDE)) \
	  $(if $(CHAPTER)$(ONLY),--only="$(CHAPTER) $(ONLY)") $(if $(WITHOUT),--without="$(WITHOUT)") $(ARGS)

.PHONY: changed
changed: ## Print the patterns that have changed since the last verified commit
	@"$(PYTHON)" -m tools.check.changes

.PHONY: measure
measure: pattern ## Measure a pattern's claim: both arms, counts, then times
	@$(MAKE) -C "$(DIRECTORY)" measure

.PHONY: results
results: environment ## Measure every pattern and its images, and write RESULTS.md
	@for pattern in $(PATTERNS); do $(MAKE) -C "$$pattern" measure ARGS= || exit; done
	@$(MAKE) fix

.PHONY: check
check: environment ## Check style, types, marked copies, generated files and conventions, as CI does
	@$(ORIGINALS) | xargs $(BIN)/ruff check --quiet
	@$(ORIGINALS) | xargs $(BIN)/ruff format --quiet --check || \
	  { echo "error: not formatted: run make fix" >&2; exit 1; }
	@$(BIN)/python -m tools.check.javascript
	@$(BIN)/python -m tools.generate --check
	@$(BIN)/python -m mypy --no-error-summary .
	@$(BIN)/python -m tools.check

.PHONY: fix
fix: environment ## Format, and write all generated files: copies, requirements, Envoy, alerts, index, results
	@$(ORIGINALS) | xargs $(BIN)/ruff check --quiet --fix-only
	@$(ORIGINALS) | xargs $(BIN)/ruff format --quiet
	@$(BIN)/python -m tools.check.javascript --fix
	@$(BIN)/python -m tools.generate

.PHONY: new
new: environment ## Create a pattern: make new NAME=chapter4_serving_patterns/foo_pattern
	@$(BIN)/python -m tools.generate.new "$(NAME)"

# The environment comes before what the startup file adds to PATH, such as the shims of pyenv.
.PHONY: dev
dev: environment ## Open a shell in the environment
	@echo "A shell in the environment of ml-system-in-actions; exit leaves it."
	@printf '%s\n' '[ ! -f ~/.bashrc ] || . ~/.bashrc' 'PATH="$$VIRTUAL_ENV/bin:$$PATH"' \
	  'PS1="(ml-system-in-actions) $$PS1"' >.venv/bashrc
	@unset MAKEFLAGS MAKELEVEL MFLAGS; VIRTUAL_ENV="$$PWD/.venv" bash --rcfile .venv/bashrc -i || true

.PHONY: dev_sync
dev_sync: ## Reset every package of the environment to the locked version
	@rm -f .venv/*.installed
	@$(MAKE) environment

.PHONY: servers
servers: ## Install the servers that patterns need without Docker: Redis, PostgreSQL and others
	@$(MAKE) environment CATEGORIES="packages --servers"

.PHONY: lock
lock: environment .venv/bin/pipenv ## Resolve the Pipfile again and export each pattern's requirements
	@$(PIPENV) lock --clear
	@$(BIN)/python -m tools.generate.requirements
	@$(MAKE) fix

.PHONY: environment
environment: .venv/bin/python
	@$(BIN)/python -m tools.generate.environment $(CATEGORIES)

.venv/bin/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -m tools.generate.environment --create

# Only `make lock` needs it.
.venv/bin/pipenv: tools/generate/pipenv-requirements.txt .venv/bin/python
	@$(BIN)/python -m ensurepip >/dev/null && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	    --requirement tools/generate/pipenv-requirements.txt && touch $@

# The book's targets.
IN_PATTERN := make -C CHAPTER/PATTERN
IN_ROOT := make
include book.mk
