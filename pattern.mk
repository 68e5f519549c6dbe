# The verbs of a pattern: its Makefile includes this file, and `make` alone shows them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

ROOT := $(abspath $(dir $(lastword $(MAKEFILE_LIST))))
BIN := $(ROOT)/.venv/bin
HERE := $(CURDIR)
PATTERN := $(notdir $(HERE))
CHAPTER := $(notdir $(patsubst %/,%,$(dir $(HERE))))
SERVICE ?=
ARGS ?=
KUBECTL ?= kubectl

# Docker where an engine answers; a pattern that was started without it is also stopped without it.
RUN ?= $(if $(wildcard .local/supervisord.pid),local,$(shell docker info >/dev/null 2>&1 && echo docker || echo local))
ifeq ($(filter $(RUN),docker local),)
$(error RUN is "$(RUN)": it is docker or local)
endif
export RUN

# What to install is what the requirements were exported from, and servers for images that are not built here.
EXPORTED := $(shell sed -n 's/^.* by make lock: //p' requirements*.txt 2>/dev/null)
IMAGES := $(shell grep -lE '^ +image: (redis|postgres|envoyproxy)' docker-compose.yml 2>/dev/null)
LOCAL_CATEGORIES := packages $(EXPORTED) $(if $(IMAGES),servers)
ENVIRONMENT = $(MAKE) -C "$(ROOT)" environment CATEGORIES="$(1)"
COMPOSE := docker compose
# Not empty where the training is one of the pattern's own processes.
TRAINS := $(shell sed -n '/^  train:/p' docker-compose.yml 2>/dev/null)
# What serves needs a model first, unless one of its processes makes it.
MODEL := $(if $(TRAINS),,$(if $(and $(wildcard app),$(wildcard train)),models/metadata.json))

.PHONY: help
help: # Shows the verbs.
	@echo "$(PATTERN): $$(sed -n '3p' README.md)"
	@echo
	@awk -F ':.*## ' '/^[a-z_]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  RUN=docker|local   with Docker or without (now: $(RUN))"

# A pattern that trains has more verbs, and trains with Docker too.
ifneq ($(TRAINS),)
include $(ROOT)/training.mk
else
.PHONY: train
train: ## Train the model into models/
	@$(call ENVIRONMENT,$(LOCAL_CATEGORIES))
	@"$(BIN)/python" -m train $(ARGS)
endif

models/metadata.json: $(wildcard train/*.py)
	@$(MAKE) train ARGS=

.PHONY: service
service: # Refuses to go on without SERVICE.
	@if [ -z "$(SERVICE)" ]; then \
	  echo "error: which one? SERVICE= is one of:" $$(sed -nE '/^services:/,/^[a-z]/s/^  ([a-z0-9_-]+):.*/\1/p' docker-compose.yml) >&2; exit 2; fi

ifeq ($(RUN),docker)

.PHONY: build
build: ## Build the images
	@$(COMPOSE) build

.PHONY: up
up: ## Start, and wait until every service is ready
	@$(COMPOSE) up --detach --build --wait --quiet-pull || \
	  { $(COMPOSE) logs --tail 30; $(COMPOSE) down; exit 1; }
	@echo "$(PATTERN) is up with Docker: see its logs with make logs, stop it with make down"

.PHONY: down
down: ## Stop everything; ARGS=--volumes also forgets its data
	@$(COMPOSE) down --remove-orphans $(ARGS)

.PHONY: stop start kill
stop: service ## Stop one service: make stop SERVICE=api
	@$(COMPOSE) stop $(SERVICE)
start: service ## Start one service again and wait until it is ready
	@$(COMPOSE) up --detach --no-recreate --no-deps --wait $(SERVICE)
kill: service ## Kill one service with SIGKILL, in the middle of its work
	@$(COMPOSE) kill $(SERVICE)

.PHONY: logs
logs: ## Show the logs: make logs ARGS=--follow
	@$(COMPOSE) logs $(ARGS) $(SERVICE)

else

.PHONY: build
build: $(or $(MODEL),models/metadata.json) # Without Docker there is nothing to build but the model.

.PHONY: up
up: $(MODEL)
	@$(call ENVIRONMENT,$(LOCAL_CATEGORIES))
	@cd "$(ROOT)" && "$(BIN)/python" -m tools.run up "$(HERE)"
	@echo "$(PATTERN) is up without Docker"

.PHONY: down
down:
	@cd "$(ROOT)" && "$(BIN)/python" -m tools.run down "$(HERE)" $(ARGS)

.PHONY: stop start kill
stop start kill: service
	@cd "$(ROOT)" && "$(BIN)/python" -m tools.run $@ "$(HERE)" $(SERVICE)

.PHONY: logs
logs:
	@cd "$(ROOT)" && "$(BIN)/python" -m tools.run logs "$(HERE)" $(SERVICE) $(ARGS)

endif

.PHONY: readme
readme: ## Play the README: each command and what it shows, from make up to make down
	@$(call ENVIRONMENT,$(if $(filter local,$(RUN)),$(LOCAL_CATEGORIES),packages))
	@cd "$(ROOT)" && "$(BIN)/python" -m tools.play.readme "$(HERE)" --run $(RUN)

.PHONY: measure
measure: $(MODEL) ## Measure the claim: make measure ARGS=--quick takes seconds
	@$(call ENVIRONMENT,$(LOCAL_CATEGORIES) measure serving training)
	@cd "$(ROOT)" && "$(BIN)/python" -m $(CHAPTER).$(PATTERN).measure $(ARGS)

.PHONY: test
test: ## Run the tests of this pattern
	@$(MAKE) -C "$(ROOT)" environment
	@unset ARGS MAKEFLAGS MAKEOVERRIDES MFLAGS; \
	cd "$(ROOT)" && "$(BIN)/python" -m pytest tests/$(CHAPTER)/test_$(PATTERN).py $(ARGS)

.PHONY: deploy
deploy: ## Apply the manifests to the cluster of the current kubectl context
	@$(KUBECTL) apply -k manifests/

.PHONY: delete
delete: ## Take them away again
	@$(KUBECTL) delete -k manifests/ --ignore-not-found
